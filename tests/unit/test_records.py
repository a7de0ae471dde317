"""Dataclasses to and from JSON: what comes back, and what is refused by which path."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from openvis_rt.bundle.bundle import FileEntry, GraphFile, Manifest, Preprocess
from openvis_rt.engines.plan import BuildOptions, Profile, ShapeValues, Sidecar
from openvis_rt.errors import InputError, RecordError
from openvis_rt.records import check_fields, json_from_record, record_from_json
from openvis_rt.systems import SYSTEMS
from openvis_rt.systems.graphs import GraphSpec, TensorSpec
from openvis_rt.systems.instformer import Guidance, InstFormerConfig
from openvis_rt.systems.system import Score, Tracker


class Range(NamedTuple):
    least: int
    most: float


@dataclass(frozen=True)
class Leaf:
    kind: Literal["a", "b", 3] = "a"
    size: int | str = 1
    ranges: dict[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    name: str
    weight: float
    good: bool
    pair: tuple[int, str]
    words: tuple[str, ...] = ()
    numbers: list[int] = field(default_factory=list)
    leaf: Leaf | None = None
    leaves: dict[str, Leaf] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        if self.weight > 100:
            raise InputError(f"weight is at most 100; got {self.weight}")


TREE = Tree(
    name="Ä\n",
    weight=2.5,
    good=True,
    pair=(1, "x"),
    words=("a", "b"),
    numbers=[1, 2],
    leaf=Leaf(kind=3, size="K"),
    leaves={"one.two": Leaf(ranges={"r": Range(0, 1.5)})},
    anything={"list": [1, None, {"x": 2.0}], "no": False},
)

TENSOR = TensorSpec("frames", "uint8", ("T", 24, 32, 3), "RGB")
GRAPH = GraphSpec("propose", (TENSOR,), (TENSOR, TENSOR), (TENSOR,))
MANIFEST = Manifest(
    system="clip-vis",
    variant="tiny",
    graphs={"fp32": {"propose": GraphFile("propose.onnx", "fp32", GRAPH)}},
    preprocess=Preprocess((24, 32), (48, 64), 24, 32, 32, (0.0, 1.5, 123.675)),
    tracker=Tracker("temporal-top-k", parameters={"frames": 5, "top_k": 3}),
    score=Score("frame-probabilities"),
    window_length=1,
    detections=10,
    prompts=("a {}", "{}"),
    text_sha256="0" * 64,
    checkpoint={"file": "a.pth", "clip": {"sha256": "1" * 64}},
    tools={"python": "3.11"},
    files={"propose.onnx": FileEntry("2" * 64, 7)},
)
SIDECAR = Sidecar(
    graph="classify",
    precision="fp16",
    precision_built="fp16",
    plan_sha256="3" * 64,
    plan_bytes=5,
    backend="tensorrt",
    library_version="10.3.0",
    platform="linux",
    gpu="Orin",
    targets=("sm87",),
    options=BuildOptions(512, 3, True, "ampere+"),
    onnx_sha256="4" * 64,
    replaced_grid_samples=2,
    replacement_error=1e-7,
    inputs=(TENSOR,),
    outputs=(replace(TENSOR, shape=(10, "?")),),
    profiles={"K": Profile(1, 64, 4096)},
    shape_values={"frame_size": ShapeValues((1, 1), (20, 30), (40, 60))},
    layers={"CONVOLUTION": {"float16": 3}},
    layers_from="network",
    build_seconds=1.25,
    created_with="0.1.0",
)
CONFIG = InstFormerConfig(Guidance(to_grid="max", scale=0.5), classes=80)


def through_text(record: object) -> Any:
    return json.loads(json.dumps(json_from_record(record), allow_nan=False))


@pytest.mark.parametrize(
    "record",
    [TREE, Leaf(), TENSOR, GRAPH, MANIFEST, SIDECAR, BuildOptions(), CONFIG, Guidance()],
    ids=lambda record: type(record).__name__,
)
def test_a_record_survives_json(record):
    found = record_from_json(type(record), through_text(record))
    assert found == record
    assert repr(found) == repr(record)  # 2.0 == 2, and True == 1


def test_every_graph_of_the_contract_survives_json():
    for system in SYSTEMS.values():
        for graph in system.graphs.values():
            assert record_from_json(GraphSpec, through_text(graph)) == graph


def test_fields_that_are_missing_have_their_defaults():
    data = {"name": "n", "weight": 1, "good": False, "pair": [1, "x"]}
    tree = record_from_json(Tree, data)
    assert tree == Tree("n", 1.0, False, (1, "x"))
    assert isinstance(tree.weight, float)  # a whole number became one
    assert record_from_json(InstFormerConfig, {}) == InstFormerConfig()


WRONG = [
    ({"name": 3}, "name: a string is needed, found 3"),
    ({"name": None}, "name: a string is needed, found None"),
    ({"weight": True}, "weight: a finite number is needed, found True"),
    ({"weight": "1"}, "weight: a finite number is needed"),
    ({"weight": float("nan")}, "weight: a finite number is needed"),
    ({"weight": 10**400}, "weight: a finite number is needed"),
    ({"weight": 101}, "weight is at most 100"),
    ({"good": 1}, "good: true or false is needed, found 1"),
    ({"pair": [1]}, "pair: 2 values are needed, found 1"),
    ({"pair": [1, 2]}, "pair[1]: a string is needed, found 2"),
    ({"pair": {"0": 1}}, "pair: a list is needed"),
    ({"words": "ab"}, "words: a list is needed, found 'ab'"),
    ({"words": ["a", 1]}, "words[1]: a string is needed"),
    ({"numbers": [1, True]}, "numbers[1]: a whole number is needed, found True"),
    ({"numbers": [1.0]}, "numbers[0]: a whole number is needed, found 1.0"),
    ({"leaf": 3}, "leaf: an object or null is needed, found 3"),
    ({"leaf": {"kind": "c"}}, "leaf.kind: one of a, b, 3 is needed, found 'c'"),
    ({"leaf": {"kind": True}}, "leaf.kind: one of"),
    ({"leaf": {"size": True}}, "leaf.size: a whole number or a string is needed, found True"),
    ({"leaf": {"colour": 1}}, "leaf.colour: this field is not known here"),
    ({"leaves": [1]}, "leaves: an object is needed"),
    ({"leaves": {"x": 1}}, "leaves.x: an object is needed"),
    ({"leaves": {"a.b": {"kind": 0}}}, "leaves['a.b'].kind: one of"),
    ({"leaves": {"x": {"ranges": {"r": [1, 2, 3]}}}}, "leaves.x.ranges.r: 2 values"),
    ({"leaves": {"x": {"ranges": {"r": [1, "y"]}}}}, "leaves.x.ranges.r.most: a finite"),
    ({"leaves": {3: {}}}, "leaves: the keys of an object are strings, found 3"),
    ({"anything": [1, {"x": float("inf")}]}, "anything[1].x: a finite number"),
    ({"anything": np.zeros(2)}, "anything: ndarray has no form in JSON"),
    ({"colour": 1}, "colour: this field is not known here"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_refused_by_its_path(change, message):
    with pytest.raises(RecordError) as caught:
        record_from_json(Tree, {**json_from_record(TREE), **change})
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["name", "weight", "good", "pair"])
def test_a_missing_field_is_named(name):
    data = {k: v for k, v in json_from_record(TREE).items() if k != name}
    with pytest.raises(RecordError, match=f"{name}: this field is missing"):
        record_from_json(Tree, data)


@pytest.mark.parametrize("data", [None, [], "x", 3, True])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(RecordError, match=r"^an object is needed"):
        record_from_json(Tree, data)


def test_unknown_fields_are_passed_over_at_every_level_when_asked():
    data = json_from_record(TREE)
    data["new"] = 1
    data["leaf"]["new"] = {"x": [float("nan")]}
    data["leaves"]["one.two"]["new"] = 1
    assert record_from_json(Tree, data, strict=False) == TREE
    with pytest.raises(RecordError, match=r"leaf\.new"):
        record_from_json(Tree, data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "a finite number"),
        (Path("x"), "PosixPath has no form in JSON"),
        ({1: 2}, "keys of an object are strings"),
        ({"a": [{"b": b"x"}]}, r"anything.a\[0\].b: bytes has no form"),
    ],
)
def test_what_has_no_form_in_json_is_refused_when_written(value, message):
    with pytest.raises(RecordError, match=message):
        json_from_record(replace(TREE, anything=value))


def test_fields_of_a_dataclass_can_be_checked_in_python():
    check_fields(TREE)
    for change, message in [
        ({"good": 1}, "good: true or false"),
        ({"words": ("a", 1)}, r"words\[1\]: a string"),
        ({"leaf": Leaf(size=None)}, "leaf.size: a whole number or a string"),
    ]:
        with pytest.raises(RecordError, match=message):
            check_fields(replace(TREE, **change))


def test_the_error_goes_from_process_to_process():
    error = pickle.loads(pickle.dumps(RecordError("a.b", "wrong")))
    assert (str(error), error.path, error.problem) == ("a.b: wrong", "a.b", "wrong")


def mutated(value: Any, rng: random.Random) -> Any:
    """JSON with one place changed for something else."""
    junk = [None, True, 0, -1.5, "", "x", [], {}, [1], {"x": 1}, float("nan"), 1 << 70]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(junk)


@pytest.mark.parametrize("record", [MANIFEST, SIDECAR, CONFIG], ids=lambda r: type(r).__name__)
def test_whatever_a_file_holds_gives_a_whole_record_or_the_one_error(record):
    rng, refused = random.Random(0), 0
    for _ in range(3000):
        data = mutated(through_text(record), rng)
        try:
            found = record_from_json(type(record), data)
        except RecordError:
            refused += 1
        else:
            check_fields(found)
    assert 1500 < refused < 3000
