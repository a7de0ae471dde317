"""Replaces a bundle at a moment of a process that uses it; runs in that process.

:func:`begin` is called before the command begins, as court's sabotage. It watches for the moment,
and where the case is a Python program that looks for other names, that takes the command's place.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["FIRST", "HOWS", "MOMENTS", "THEN", "begin"]

FIRST, THEN = ("disc", "ring"), ("star", "red square")

# a function, whether it is before or after its call, and which call of it
MOMENTS: dict[str, tuple[str, str, str, int]] = {
    "its manifest was read": ("bundle.bundle", "read_manifest", "after", 1),
    "a graph is looked into": ("bundle.bundle", "refused_part", "before", 1),
    "its files were checked": ("bundle.bundle", "Bundle.verify", "after", 1),
    "one graph was opened": ("runtime.backends.onnxruntime", "OnnxRuntime.open", "after", 1),
    "its graphs were opened": ("runtime.graphs", "Graphs.__init__", "after", 1),
    "its tracker is to be read": ("runtime.pipeline", "matcher_from_bundle", "before", 1),
    "its tokenizer is to be read": ("runtime.text", "ClipTokenizer.__init__", "before", 1),
    "names are to be embedded": ("runtime.text", "TextEmbedder.__call__", "before", 1),
    "names were embedded": ("runtime.text_cache", "TextCache.put", "before", 1),
    "the first frame comes": ("runtime.graphs", "Graphs.submit", "before", 1),
    "the fifth frame comes": ("runtime.graphs", "Graphs.submit", "before", 5),
    "the masks of the sixth frame are made": ("runtime.graphs", "Graphs.masks", "before", 6),
    "other names come": ("runtime.text", "TextEmbedder.__call__", "before", 2),
    "the cache was asked for other names": ("runtime.text_cache", "TextCache.get", "after", 2),
    "other names were embedded": ("runtime.text_cache", "TextCache.put", "before", 2),
    "ranges are to be counted": ("calib.calibrate", "count_ranges", "before", 1),
    "ranges were counted": ("calib.calibrate", "count_ranges", "after", 1),
    "INT8 graphs are to be added": ("calib.calibrate", "add_int8", "before", 1),
    "INT8 graphs are being added": ("bundle.growing", "Change.set_precision", "after", 1),
    "a batch was begun": ("serving.index", "BatchFolder.settle", "before", 1),
    "its first video was done": ("serving.worker", "Worker.do", "after", 1),
    "a benchmark was begun": ("bench.benchmark", "_Contest._run", "before", 1),
    "the first contender was opened": ("bench.benchmark", "_Contest._open", "after", 1),
    "the first video was evaluated": ("evaluation.predicting", "_Run.predicted", "after", 1),
    "PyTorch's answers are to be read": ("verify.reference", "read_reference", "before", 1),
    "PyTorch's answers were read": ("verify.reference", "read_reference", "after", 1),
    "the graphs were compared": ("verify.verify", "check_class_names", "before", 1),
}


def begin(plan: dict[str, Any]) -> None:
    """Watch for the plan's moment; and where it says so put a program in the command's place."""
    os.environ["XDG_CACHE_HOME"] = str(Path("cache").absolute())
    if plan.get("moment"):
        acted = Path("acted").absolute()

        def act() -> None:
            acted.touch()
            HOWS[plan["how"]](*plan["what"])

        _watch(*MOMENTS[plan["moment"]], act)
    if plan.get("program"):
        program = {"names": _other_names, "another": _another_pipeline}[plan["program"]]
        importlib.import_module("openvis_rt.cli.main").app = lambda prog_name: program()


def _watch(module: str, name: str, side: str, wanted: int, act: Callable[[], None]) -> None:
    owner: Any = importlib.import_module(f"openvis_rt.{module}")
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0

    def watched(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == wanted and side == "before":
            act()
        result = real(*given, **more)
        if calls == wanted and side == "after":
            act()
        return result

    setattr(owner, name, watched)


def _copied(source: Path, target: Path, put: Callable[[Path, Path], None]) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        if "text" not in file.relative_to(source).parts[:-1]:
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            put(file, place)


def _renamed_over(source: Path, place: Path) -> None:
    aside = place.with_name(f"{place.name}.new")
    shutil.copyfile(source, aside)
    aside.replace(place)


def _written_over(source: Path, place: Path) -> None:
    place.write_bytes(source.read_bytes())


def _folder() -> None:
    Path("bundle").rename("aside")
    Path("other").rename("bundle")


def _link() -> None:
    Path("new-link").symlink_to("other")
    Path("new-link").replace("bundle")


def _flipped(name: str, place: float = 0.5) -> None:
    with Path("bundle", name).open("r+b") as file:
        at = int(place * os.fstat(file.fileno()).st_size)
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 4]))


def _put_in_place(name: str, make: Callable[[Path], object]) -> None:
    Path("bundle", name).unlink()
    make(Path("bundle", name))


HOWS: dict[str, Callable[..., None]] = {
    "a folder renamed over it": _folder,
    "a link led elsewhere": _link,
    "each file renamed over": lambda: _copied(Path("other"), Path("bundle"), _renamed_over),
    "each file written over": lambda: _copied(Path("other"), Path("bundle"), _written_over),
    "a file renamed over": lambda name: _renamed_over(Path("other", name), Path("bundle", name)),
    "a file written over": lambda name: _written_over(Path("other", name), Path("bundle", name)),
    "a bit flipped": _flipped,
    "a file cut short": lambda name, size=0: os.truncate(Path("bundle", name), size),
    "a file removed": lambda name: Path("bundle", name).unlink(),
    "a file became a pipe": lambda name: _put_in_place(name, os.mkfifo),
    "a file became a folder": lambda name: _put_in_place(name, Path.mkdir),
    "a file became a link": lambda name: _put_in_place(
        name, lambda path: path.symlink_to(Path("other", name).absolute())
    ),
    "a file became endless": lambda name: _put_in_place(
        name, lambda path: path.symlink_to("/dev/zero")
    ),
    "a file may not be read": lambda name: Path("bundle", name).chmod(0),
    "all of it removed": lambda: shutil.rmtree("bundle"),
}


@contextlib.contextmanager
def _opened() -> Iterator[tuple[Any, Any]]:
    """A pipeline with the first names, and the video."""
    from openvis_rt import Pipeline, open_video
    from openvis_rt.runtime.options import Selection

    with (
        Pipeline.open(
            "bundle",
            vocabulary=FIRST,
            backend="onnxruntime",
            mode="stream",
            selection=Selection(0.0, 5),
        ) as pipeline,
        open_video("video.mp4") as video,
    ):
        yield pipeline, video


def _other_names() -> None:
    """Four frames with the first names, and four with others, or with the first if refused."""
    from openvis_rt import OpenVISError

    with _opened() as (pipeline, video):
        found, refusal = [], None
        for frame in video:
            if frame.index == 4:
                try:
                    pipeline.set_vocabulary(THEN)
                except OpenVISError as exc:
                    refusal = exc
            found += [_told(result) for result in pipeline.stream([frame])]
    _print(found, refusal)


def _another_pipeline() -> None:
    """Eight frames, each by two pipelines over the same graphs; the other one has other names."""
    from openvis_rt import OpenVISError

    with _opened() as (pipeline, video):
        found, refusal = [], None
        for frame in video:
            found += [_told(result) for result in pipeline.stream([frame])]
            if frame.index == 0:
                try:
                    other = pipeline.another(vocabulary=THEN)
                except OpenVISError as exc:
                    refusal = exc
            if refusal is None:
                found += [_told(result) for result in other.stream([frame])]
    _print(found, refusal)


def _told(result: Any) -> list[Any]:
    return [(i.name, round(float(i.score), 5), list(map(int, i.box))) for i in result.instances]


def _print(found: list[Any], refusal: Exception | None) -> None:
    print(json.dumps(found))
    if refusal is not None:
        raise refusal
