"""Writing what a calibration made into a bundle, or into a copy of it, as a whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from openvis_rt.bundle.bundle import MANIFEST, Bundle
from openvis_rt.bundle.growing import Change
from openvis_rt.bundle.manifest_file import save_manifest
from openvis_rt.calib.int8_graphs import Int8Graph
from openvis_rt.calib.ranges import FOLDER, RECORD, Calibration
from openvis_rt.calib.reading import calibration_file
from openvis_rt.files import output_directory
from openvis_rt.systems.graphs import INT8, QUANTISED

__all__ = ["add_int8"]


def add_int8(
    bundle: Bundle,
    output: Path | None,
    calibration: Calibration,
    made: Mapping[str, Sequence[Int8Graph]],
    texts: Mapping[str, str],
    *,
    overwrite: bool,
) -> Bundle:
    """Add INT8 graphs and their calibration, in place of all that are there.

    Args:
        bundle: to add to.
        output: None, or a place for a copy that is added to.
        calibration: is written as ``calibration/ranges.json``.
        made: by precision the graphs.
        texts: further files below ``calibration/``, by name.
        overwrite: replace a bundle at ``output``.

    Returns:
        the bundle that has them.

    Raises:
        OutputError: it cannot be written, or the output exists.
    """
    with _target(bundle, output, overwrite=overwrite) as target, target.adding() as change:
        _change(change, calibration, made, texts)
    return Bundle.open(bundle.path if output is None else output, verify=False)


@contextlib.contextmanager
def _target(bundle: Bundle, output: Path | None, *, overwrite: bool) -> Iterator[Bundle]:
    """The bundle itself, or a copy of its listed files, which gets its name at the end."""
    if output is None:
        yield bundle
        return

    def ours(folder: Path) -> bool:
        return (folder / MANIFEST).is_file()

    with output_directory(output, overwrite=overwrite, ours=ours) as folder:
        copy = folder / "copy"  # the folder itself is locked, and so is a bundle that grows
        for name in bundle.manifest.files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            bundle.copy_file(name, copy / name)
        save_manifest(bundle.manifest, copy / MANIFEST)
        yield Bundle.open(copy, verify=False)
        for path in copy.iterdir():
            path.rename(folder / path.name)
        copy.rmdir()


def _change(
    change: Change,
    calibration: Calibration,
    made: Mapping[str, Sequence[Int8Graph]],
    texts: Mapping[str, str],
) -> None:
    import onnx

    held = change.manifest
    for precision, graphs in made.items():
        own = {}
        for graph in graphs:
            name = change.unused_name(graph.file.file)
            onnx.save(graph.model, str(change.new_file(name)))
            own[graph.graph] = replace(graph.file, file=name)
        base = held.graphs["fp16" if precision == INT8 else "fp32"]
        change.set_precision(precision, {**base, **own})
    kept = {n: g for n, g in change.manifest.graphs.items() if n in made or n not in QUANTISED}
    change.manifest = replace(change.manifest, graphs=kept)  # without those of a record that goes
    if calibration_file(held.files) is not None:
        change.drop(FOLDER)
    calibration.write(change.new_file(change.unused_name(RECORD)))
    for name, text in texts.items():
        file = change.new_file(change.unused_name(f"{FOLDER}/{name}"))
        file.write_text(text, encoding="utf-8")
