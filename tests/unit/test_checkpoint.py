"""Checkpoints: every way in which a file can be wrong has a message, and none of them runs code."""

from __future__ import annotations

import gzip
import pickle
import random
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints are read by the extra [export]")

from safetensors.torch import save_file  # noqa: E402 - after the skip
from tiny import QUERIES as QUERY_COUNT  # noqa: E402
from tiny import tiny_model  # noqa: E402

from openvis_rt.checkpoints.keys import has_sizes_of, signature_of, variant_of  # noqa: E402
from openvis_rt.checkpoints.load import Checkpoint, load_model  # noqa: E402
from openvis_rt.checkpoints.weights import read_weights  # noqa: E402
from openvis_rt.errors import CheckpointError  # noqa: E402
from openvis_rt.models import clip_vis  # noqa: E402
from openvis_rt.models.network import build_network  # noqa: E402
from openvis_rt.systems import SYSTEMS, VARIANTS  # noqa: E402

NAME = "clip-vis-r50"
HEAD = "sem_seg_head.predictor."
QUERIES = f"{HEAD}query_feat.weight"
POSITIONS = f"{HEAD}query_embed.weight"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    def build(_variant, decoder_layers: int = 2, queries: int = QUERY_COUNT):
        return tiny_model(decoder_layers=decoder_layers, queries=queries, seed=7)

    monkeypatch.setattr(clip_vis, "build", build)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny_model(seed=1).state_dict()


@pytest.fixture
def state(weights) -> dict[str, torch.Tensor]:
    return dict(weights)


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(NAME, path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_loaded(model, weights: dict[str, torch.Tensor]) -> None:
    assert not model.training
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, weights[key].to(value.dtype)), key


# what loads


def test_the_official_form_loads_every_weight(tmp_path, state, weights):
    assert_loaded(load_model(NAME, saved(tmp_path, {"model": state})).model, weights)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_detectron2_keeps_beside_the_weights_is_no_obstacle(tmp_path, state, weights, legacy):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "model": OrderedDict(state),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 3, "base_lrs": [1e-4]},
        "trainer": {"iteration": 3},
        "iteration": 3,
        "metric": np.float64(0.5),
        "best": [np.float32(1), np.int64(2), np.bool_(1)],
    }
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_loaded(load_model(NAME, path).model, weights)


def test_a_bare_state_dict_loads(tmp_path, state, weights):
    assert_loaded(load_model(NAME, saved(tmp_path, state)).model, weights)


def test_safetensors_load(tmp_path, state, weights):
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    assert_loaded(load_model(NAME, path).model, weights)


def test_what_only_training_needs_is_ignored(tmp_path, state, weights):
    state["criterion.empty_weight"] = torch.full((3,), torch.nan)
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    assert_loaded(load_model(NAME, saved(tmp_path, {"model": state})).model, weights)


def test_counters_of_batch_norm_may_be_absent(tmp_path, state, weights):
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    assert counters
    for key in counters:
        del state[key]
    assert_loaded(load_model(NAME, saved(tmp_path, {"model": state})).model, weights)


def test_the_old_name_of_the_queries_is_known(tmp_path, state, weights):
    state[f"{HEAD}static_query.weight"] = state.pop(QUERIES)
    assert_loaded(load_model(NAME, saved(tmp_path, {"model": state})).model, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path, state, dtype):
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    model = load_model(NAME, saved(tmp_path, {"model": half})).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_loaded(model, half)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_depth_is_read_from_the_file(tmp_path, layers):
    deep = tiny_model(decoder_layers=layers, seed=2).state_dict()
    model = load_model(NAME, saved(tmp_path, {"model": deep})).model
    assert model.sem_seg_head.predictor.layers == layers
    assert_loaded(model, deep)


def test_the_same_seed_gives_the_same_weights_and_touches_no_other_randomness(monkeypatch):
    monkeypatch.setattr(clip_vis, "build", lambda _: torch.nn.Linear(3, 3))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (load_model(NAME, seed).model.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# what does not


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    assert "no checkpoint file" in refused(tmp_path / "none.pth")
    assert "no checkpoint file" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04" + bytes(90)]
)
def test_what_is_no_checkpoint_is_refused_with_its_size(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert f"{len(content)} bytes" in refused(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\xef\xbb\xbf\n <html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (gzip.compress(b"weights", mtime=0), "a gzip file"),
    ],
    ids=["empty", "page", "page with mark", "pointer", "gzip"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl", ".bin"])
def test_what_is_often_taken_for_a_checkpoint_is_told(tmp_path, content, reason, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert reason in refused(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_reason_is_never_empty(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(3)}}, protocol=protocol))
    message = refused(path)
    assert " ()" not in message
    assert ": ." not in message
    assert "numpy" in message or "Unsupported operand" in message


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_download_is_refused(tmp_path, state, form, share):
    small = {k: v for k, v in state.items() if k.startswith(HEAD)}
    path = tmp_path / f"model.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in small.items()}, path)
    else:
        torch.save({"model": small}, path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "cut short" in refused(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "pickle"])
def test_no_damage_gets_past_the_one_kind_of_error(tmp_path, form):
    """A changed byte anywhere loads as some tensors, or is refused; there is no other error."""
    small = {f"weight.{i}": torch.arange(4.0) + i for i in range(6)}
    path = tmp_path / f"model.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(small, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"model": {k: v.tolist() for k, v in small.items()}}))
    else:
        torch.save({"model": small}, path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    rng = random.Random(0)
    refusals = 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except CheckpointError:
            refusals += 1
    assert refusals > 0


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_a_pickle_that_would_run_code_runs_none(tmp_path, state, form):
    trap = tmp_path / "executed"
    content = {"model": dict(list(state.items())[:3]), "extra": _Evil(trap)}
    path = tmp_path / "model.pth"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(_Evil(trap), protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(path)
    assert not trap.exists()
    assert "could run code" in message
    assert "weights_only" not in message  # torch's own advice is to switch the guard off
    if form != "pickle 4":  # a protocol that torch's guard does not read that far
        assert "open" in message  # what it would have called


@pytest.mark.parametrize(
    ("keys", "system"),
    [
        (
            (
                f"{HEAD}class_embed.zs_weight",
                f"{HEAD}class_embed.cross_attention.multihead_attn.in_proj_weight",
            ),
            "ovformer",
        ),
        ((f"{HEAD}object_embed.layers.0.bias", f"{HEAD}class_embed.linear.0.weight"), "ov2seg"),
        ((f"{HEAD}class_embed.weight", f"{HEAD}mask_embed.layers.0.weight"), "minvis"),
        (("clip_adapter.clip_model.visual.proj", f"{HEAD}mask_embed.layers.0.weight"), "openvis"),
        (("visual.conv1.weight", "token_embedding.weight"), "CLIP alone"),
        (
            (
                *("vision_model.encoder.layers.0.a", "text_model.encoder.layers.0.b"),
                *("visual_projection.weight", "text_projection.weight"),
            ),
            "CLIP under Hugging Face's names",
        ),
        (("vision_model.head.probe", "text_model.head.weight", "logit_bias"), "SigLIP"),
        (("vision_model.post_layernorm.bias", "visual_projection.weight"), "SigLIP, or one tower"),
        (("proposal.sem_seg_head.a", "clip.visual.proj"), "instformer"),
        (("layer1.0.weight",), "no system"),
    ],
)
def test_a_checkpoint_of_another_system_is_called_by_its_name(tmp_path, keys, system):
    path = saved(tmp_path, {"model": {key: torch.zeros(2) for key in keys}})
    message = refused(path)
    assert system in message
    assert "clip-vis" in message
    if system == "instformer":  # described only with its header: test_assemble.py
        return
    assert system in Checkpoint.open(path).describe()["system"]


def test_a_missing_key_is_named(tmp_path, state):
    del state[f"{HEAD}iou_head.layers.1.bias"]
    message = refused(saved(tmp_path, {"model": state}))
    assert f"1 missing: {HEAD}iou_head.layers.1.bias" in message
    assert "unexpected" not in message


def test_a_renamed_key_is_named_twice(tmp_path, state):
    state[f"{HEAD}query_feats.weight"] = state.pop(QUERIES)
    message = refused(saved(tmp_path, {"model": state}))
    assert f"1 missing: {QUERIES}" in message
    assert f"1 unexpected: {HEAD}query_feats.weight" in message


def test_another_shape_is_named_with_both_shapes(tmp_path, state):
    state[POSITIONS] = state[POSITIONS][:5]
    message = refused(saved(tmp_path, {"model": state}))
    assert "(5, 256) found, (10, 256) needed" in message


def test_weights_of_the_other_variant_are_refused_without_a_thousand_lines(tmp_path, state):
    other = {k.replace(".visual.", ".visual.trunk."): v for k, v in state.items()}
    message = refused(saved(tmp_path, {"model": other}))
    assert " more" in message
    assert len(message.splitlines()) < 8


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_no_number_is_refused_by_its_key(tmp_path, state, value):
    state[QUERIES] = state[QUERIES].clone()
    state[QUERIES][3, 4] = value
    message = refused(saved(tmp_path, {"model": state}))
    assert QUERIES in message
    assert "NaN or infinity" in message


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {},
        {"model": {}},
        {"model": None},
        {"model": {"a": 1.0}},
        {"model": {"a": torch.zeros(2), "b": [torch.zeros(2)]}},
    ],
    ids=str,
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    refused(saved(tmp_path, content))


def test_a_description_says_what_a_file_holds(tmp_path, state):
    facts = Checkpoint.open(saved(tmp_path, {"model": state})).describe()
    assert facts["system"] == "clip-vis"
    assert facts["decoder layers"] == 2
    assert facts["tensors"] == len(state)
    assert facts["parameters"] == sum(v.numel() for v in state.values())
    assert facts["types"] == ["float32", "int64"]


def test_an_empty_safetensors_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "empty.safetensors"
    save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load_model("clip-vis-r50", path)


def test_a_large_safetensors_file_may_begin_like_something_else(tmp_path):
    """Its first bytes are a length, which can be those of a web page or of gzip."""
    path = tmp_path / "model.safetensors"
    for length, first in ((0x123C, b"<"), (0x8B1F, b"\x1f\x8b")):
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
        assert path.read_bytes().startswith(first)
        assert read_weights(path).tensors["a"].tolist() == [0.0]


def test_no_two_systems_take_the_same_file_unless_they_say_so():
    """Keys that fit one system's signature are told from every other's, in whatever order."""
    signatures = {s.signature.words: s.signature for s in SYSTEMS.values()}
    for system in SYSTEMS.values():
        keys = [re.sub(r"\\", "", pattern) for pattern in system.signature.keys]
        assert signature_of(keys) == system.signature
        others = [s for s in signatures.values() if s != system.signature]
        assert not any(
            all(any(re.match(p, key) for key in keys) for p in other.keys) for other in others
        )


def test_a_new_variant_is_known_by_its_own_encoders_keys():
    """Of two variants whose keys a file has, the one that says more of them is meant."""
    known = SYSTEMS["clip-vis"]
    deeper = replace(
        known.variants[0],
        name="clip-vis-r101",
        encoder_key="backbone.clip_model.visual.layer3.22.",
    )
    system = replace(known, variants=(*known.variants, deeper))
    keys = [f"{deeper.encoder_key}conv1.weight", "backbone.clip_model.visual.layer4.0.conv1.weight"]
    assert variant_of(system, dict.fromkeys(keys, torch.zeros(1))) is deeper
    assert variant_of(system, dict.fromkeys(keys[1:], torch.zeros(1))) is known.variants[0]
    assert variant_of(system, {"backbone.conv1.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize("name", ["clip-vis", "instformer", "ovformer-video"])
def test_variants_with_the_same_keys_are_told_apart_by_their_sizes(name):
    """A miniature's encoder has the keys of a released one."""
    system = SYSTEMS[name]
    for variant in system.variants:
        prefix = "proposal." if name == "instformer" else ""
        projection = f"{prefix}sem_seg_head.pixel_decoder.input_proj.0.0.weight"
        sizes = (variant.sizes.width, variant.feature_channels[-1], 1, 1)
        state = {
            f"{variant.encoder_key}0.conv1.weight": torch.zeros(1),
            projection: torch.zeros(sizes),
        }
        assert variant_of(system, state) is variant
        assert has_sizes_of(variant, state)
        for size in (sizes[:2], (sizes[0] + 1, *sizes[1:]), (sizes[0], sizes[1] + 1, 1, 1), ()):
            fits = has_sizes_of(variant, {projection: torch.zeros(size)})
            assert fits == (size == sizes[:2])
        assert not has_sizes_of(variant, {})


def test_the_file_of_a_miniature_raises_no_doubt_about_what_it_is(tmp_path):
    """OVFormer's two models have the same keys, but only one of them has a miniature."""
    path = tmp_path / "ovformer.safetensors"
    save_file(build_network(VARIANTS["ovformer-mini"]).network.state_dict(), path)
    assert load_model("ovformer-mini", path).warnings == ()
