"""Graphs of a bundle that are no files, or hold what no export writes; every digest is right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from court import Case, Outcome
from onnx import TensorProto, helper, numpy_helper
from sealing import replaced, sealed
from workshop import Workshop

__all__ = ["ROWS"]

GRAPHS = ("propose", "classify", "masks", "text")
REFUSED = frozenset({2})
Change = Callable[[onnx.ModelProto], object]


def _node_with_graph(kind: str, domain: str = "") -> Change:
    """A node with a graph inside, which is the whole strange thing about the file."""

    def change(model: onnx.ModelProto) -> None:
        inner = helper.make_node("Strange" if domain else "Identity", ["c"], ["d"], domain=domain)
        boolean = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in "cd"]
        body = helper.make_graph([inner], "body", boolean[:1], boolean[1:])
        model.graph.node.append(helper.make_node(kind, ["c"], ["e"], body=body))

    return change


def _custom(domain: str) -> Change:
    return lambda model: model.graph.node.append(
        helper.make_node("Strange\x1b[2J", ["a"], ["b"], domain=domain)
    )


def _renamed_domain(domain: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = domain
        model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def _function(model: onnx.ModelProto) -> None:
    inner = [helper.make_node("Strange", ["a"], ["b"], domain="stranger")]
    opsets = [helper.make_opsetid("stranger", 1)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], inner, opsets))


def _external(location: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def _first(field: str, side: str, value: int | str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = getattr(model.graph, side)[0]
        if field == "name":
            tensor.name = str(value)
        elif field == "dtype":
            tensor.type.tensor_type.elem_type = int(value)
        elif field == "rank":
            tensor.type.tensor_type.shape.dim.add().dim_value = int(value)
        else:
            tensor.type.tensor_type.shape.dim[0].dim_value = int(value)

    return change


def _mode(words: bytes) -> Change:
    """A node whose attribute's words come back in the library's own message."""

    def change(model: onnx.ModelProto) -> None:
        node = helper.make_node("Resize", [model.graph.input[0].name, "", "scales"], ["resized"])
        node.attribute.add(
            name="coordinate_transformation_mode", s=words, type=onnx.AttributeProto.STRING
        )
        scales = np.ones(len(model.graph.input[0].type.tensor_type.shape.dim), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(scales, "scales"))
        model.graph.node.append(node)
        del model.graph.output[0]
        model.graph.output.append(helper.make_empty_tensor_value_info("resized"))

    return change


def _no_text(side: str) -> Change:
    """The file with a tensor's name, wherever it stands, in bytes that are no UTF-8."""

    def change(model: onnx.ModelProto) -> bytes:
        name = getattr(model.graph, side)[0].name.encode()
        return model.SerializeToString().replace(name, name[:-1] + b"\x8b")

    return change


def _opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


CHANGES: dict[str, Change] = {
    **{f"node {kind} with a graph": _node_with_graph(kind) for kind in ("Loop", "Scan", "If")},
    "a custom operator inside of a Loop": _node_with_graph("Loop", "stranger"),
    **{f"a custom operator of {d!r}": _custom(d) for d in ("stranger", "com.microsoft", "\x1b")},
    **{f"domain {d!r}": _renamed_domain(d) for d in ("ai.onnx.ml", "custom", "\u202e")},
    "a function that hides an operator": _function,
    **{
        f"numbers in {place!r}": _external(place)
        for place in ("w.bin", "../w.bin", "/dev/zero", "/etc/passwd", "", "\x1b[2J")
    },
    **{f"the mode {m!r}": _mode(m) for m in (b"other", b"\x1b]0;x\x07", b"\xff\x1b[2J", b"%s%n")},
    **{f"the name of an {side} is no text": _no_text(side) for side in ("input", "output")},
    **{f"opset {version}": _opset(version) for version in (0, -1, 1, 99, 2**31, 2**62)},
    **{
        f"{side} {field} {value!r}": _first(field, side, value)
        for side in ("input", "output")
        for field, value in (
            *(("name", ""), ("name", "\x1b]0;x\x07"), ("name", "other"), ("dtype", 0)),
            *(("dtype", 8), ("dtype", 11), ("dtype", 999), ("rank", 7), ("size", 10**12)),
            ("size", -5),
        )
    },
}


def _graphs(workshop: Workshop, verb: str) -> Iterator[Case]:
    for graph in GRAPHS:
        for name, change in CHANGES.items():

            def make(
                folder: Path, graph: str = graph, change: Change = change
            ) -> Sequence[str | Path]:
                bundle = workshop.linked(folder)
                model = onnx.load(bundle / f"{graph}.onnx")
                changed = change(model)
                (folder / "w.bin").write_bytes(bytes(64))
                data = changed if isinstance(changed, bytes) else model.SerializeToString()
                replaced(bundle, f"{graph}.onnx", data)
                return _arguments(workshop, verb)

            # ONNX Runtime works an output's shape out anew, whatever the file says of it, and
            # takes a size below 0 for one that is open, as that of `text` is
            passed = name.startswith(("output size", "output rank", "input size -5"))
            codes = REFUSED | {0} if passed else REFUSED
            check = _as_the_good_one(workshop) if verb == "run" else lambda *_: None
            yield Case(f"{graph}: {name}", make, codes=codes, check=check)


def _as_the_good_one(workshop: Workshop) -> Callable[[Path, Outcome], str | None]:
    def check(folder: Path, outcome: Outcome) -> str | None:
        if outcome.code == 0 and (folder / "out/results.json").read_text() != workshop.results:
            return "other results than the good bundle's"
        return None

    return check


def _arguments(workshop: Workshop, verb: str) -> list[str | Path]:
    if verb == "inspect":
        return [verb, "bundle"]
    return [verb, "bundle", workshop.video, "-c", "disc", "--only", "-o", "out"]


def contents(workshop: Workshop) -> Iterator[Case]:
    """Graphs with something in them that no export writes, and a whole run."""
    return _graphs(workshop, "run")


def _link(target: str) -> Callable[[Path], object]:
    return lambda file: file.symlink_to(target)


PLACES: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda file: file.symlink_to(file.name),
    **{f"a link to {t}": _link(t) for t in ("/dev/zero", "/etc/passwd", "../video.mp4", "gone")},
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text('ir_version: 8\ngraph { name: "x" }\n'),
    "not to be read": lambda file: (file.write_bytes(b"x"), file.chmod(0)),
}
NAMES = ("../w.onnx", "/etc/passwd", "unlisted.onnx", "engines/x.onnx", "text/x", ".x", "a//b", "")


def places(workshop: Workshop) -> Iterator[Case]:
    """Graphs that are no files, or lie where no graph may."""
    for verb in ("inspect", "run"):
        for graph in GRAPHS:
            for name, place in PLACES.items():

                def make(
                    folder: Path,
                    verb: str = verb,
                    graph: str = graph,
                    place: Callable[[Path], object] = place,
                ) -> Sequence[str | Path]:
                    bundle = workshop.linked(folder)
                    (bundle / f"{graph}.onnx").unlink()
                    place(bundle / f"{graph}.onnx")
                    return _arguments(workshop, verb)

                yield Case(f"{verb} {graph}: {name}", make, codes=REFUSED)
            for name in NAMES:

                def named(
                    folder: Path, verb: str = verb, graph: str = graph, name: str = name
                ) -> Sequence[str | Path]:
                    bundle = workshop.linked(folder)
                    shutil.copy(bundle / "masks.onnx", folder / "w.onnx")
                    manifest = json.loads((bundle / "bundle.json").read_text())
                    entry = manifest["graphs"]["fp32"][graph]
                    if name != "unlisted.onnx":
                        manifest["files"][name] = manifest["files"][entry["file"]]
                    entry["file"] = name
                    sealed(bundle, manifest)
                    return _arguments(workshop, verb)

                yield Case(f"{verb} {graph}: at {name!r}", named, codes=REFUSED)


ROWS = {"graphs, contents": contents, "graphs, places": places}
