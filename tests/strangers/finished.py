"""Results that somebody else wrote: what `convert` reads, and what `eval` measures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contents import Put, changed_bytes
from court import Case
from smallfiles import Arguments, cases, every_change
from workshop import Workshop

from openvis_rt.runtime.video.results import result_from_line

__all__ = ["ROWS"]

SIZE = [4, 6]
MASK = {"size": SIZE, "counts": "45?"}  # 4 zeros, 5 ones, 15 zeros
FOUND = {"id": 1, "name": "disc", "category_id": 1, "score": 0.5, "box": [1, 0, 2, 4]}
FRAME = {"frame": 0, "time": 0.0, "size": SIZE, "instances": [{**FOUND, "segmentation": MASK}]}
CATEGORIES = [{"id": 1, "name": "disc"}]
FORMS = ("csv", "coco", "mot", "mots", "html")


def finished(_: Workshop) -> Iterator[Case]:
    """The folder of a run: each line of its frames, and its categories."""
    found, frame, categories = FOUND, FRAME, CATEGORIES
    line = json.dumps(frame)
    result_from_line(line)  # what the others are changed from is good
    good = {
        "frames.jsonl": line.encode() + b"\n",
        "categories.json": json.dumps(categories).encode(),
    }

    def use(name: str, number: int) -> Any:
        def write(folder: Path, put: Put) -> Arguments:
            (folder / "run").mkdir()
            for other in good.keys() - {name}:
                (folder / "run" / other).write_bytes(good[other])
            put(folder / "run" / name)
            return ["convert", "run", "--to", FORMS[number % 4], "-o", "out"]

        return write

    runs = (
        "04",
        "24",
        "T1",
        "",
        "o" * 40,
        "_" * 30,
        "PPPPPPPPPP0",
        "oooooooooooo0",
        "\x1b[2J",
        "0",
        "é",
    )
    for number, counts in enumerate(runs):
        mask = {**found, "segmentation": {**MASK, "counts": counts}}
        text = json.dumps({**frame, "instances": [mask]})
        put = [(f"run lengths {counts!r}", lambda path, text=text: path.write_text(text))]
        yield from cases(put, use("frames.jsonl", number), "run")
    changes = (every_change(frame, 100), changed_bytes(good["frames.jsonl"], 20))
    for number, change in enumerate(change for some in changes for change in some):
        yield from cases([change], use("frames.jsonl", number), "run")
    for number, change in enumerate(every_change(categories, 20)):
        yield from cases([change], use("categories.json", number), "run")


def contradictions(workshop: Workshop) -> Iterator[Case]:
    """Lines that are each well formed, and that no run writes."""
    boxes = ([3, 3, 3, 1], [-3, -3, 2, 2], [0.5, 0.5, 1.5, 1.5], [10**299] * 4, [1, 0, 2, 5], [1])
    for box in boxes:
        yield _refused(f"box {box!r:.30}", _showing(box=box))
    # a run without a pixel: pycocotools says that its box is outside
    outside = {**MASK, "counts": "h00"}
    yield _refused("a box outside", _showing(box=[5, 0, 2, 4], segmentation=outside))
    for numbers in ((0, 0, 0), (9, 5, 0), (0, 10**11)):
        yield _refused(f"frames {numbers}", *({**FRAME, "frame": number} for number in numbers))
    for time in (1e300, 1e13, -1.0, 10**30):
        lines = ({**FRAME, "frame": number, "time": time} for number in range(3))
        yield _refused(f"times {time:g}", *lines, more=("--to", "html", "--video", workshop.video))
    yield _refused("another category", _showing(category_id=7))
    yield _refused("another name", _showing(name="cat"))
    yield _refused("a gigapixel", _large(1 << 15, "PPPPP8PPPPP`0PPPPP8"))
    twice = [*CATEGORIES, {"id": 1, "name": "cat"}]
    for categories in ([{"id": 1.5, "name": "disc"}], [{"id": 1, "name": None}], twice):
        yield _refused(f"categories {categories}", FRAME, categories=categories)
    largest = _case("the largest picture", [_large(13376, "PPQeZ1PPRZe2PPQeZ1")], {0})
    yield replace(largest, seconds=60.0)  # most of them for its PNG file


def _showing(**change: Any) -> dict[str, Any]:
    return {**FRAME, "instances": [{**FOUND, "segmentation": MASK, **change}]}


def _large(side: int, counts: str) -> dict[str, Any]:
    """Three objects in the middle half of a square frame."""
    box, size = [side // 4, 0, side // 2, side], [side, side]
    found = {**FOUND, "box": box, "segmentation": {"size": size, "counts": counts}}
    return {**FRAME, "size": size, "instances": [{**found, "id": number} for number in range(3)]}


def _refused(name: str, *frames: dict[str, Any], **how: Any) -> Case:
    return _case(name, frames, {2}, **how)


def _case(
    name: str,
    frames: Iterable[dict[str, Any]],
    codes: set[int],
    categories: Any = CATEGORIES,
    more: Sequence[str | Path] = ("--to", "mots"),
) -> Case:
    def make(folder: Path) -> Arguments:
        (folder / "run").mkdir()
        lines = "".join(json.dumps(frame) + "\n" for frame in frames)
        (folder / "run/frames.jsonl").write_text(lines)
        (folder / "run/categories.json").write_text(json.dumps(categories))
        return ["convert", "run", *more, "-o", "out.html" if "html" in more else "out"]

    return Case(name, make, frozenset({"out", "out.html", "run"}), frozenset(codes))


def _annotations() -> dict[str, Any]:
    video = {"id": 1, "width": 6, "height": 4, "length": 1, "file_names": ["a/0.jpg"]}
    truth = {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "areas": [5]}
    return {
        "videos": [video],
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [{**truth, "bboxes": [[1, 0, 2, 4]], "segmentations": [MASK]}],
    }


def _evaluated(name: str) -> Any:
    entry = {"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [MASK]}
    good = {"val.json": json.dumps(_annotations()), "results.json": json.dumps([entry])}

    def use(folder: Path, put: Put) -> Arguments:
        for other in good.keys() - {name}:
            (folder / other).write_text(good[other])
        put(folder / name)
        given = ["--annotations", "val.json", "--results", "results.json"]
        return ["eval", *given, "--no-pictures", "-o", "out"]

    yield from cases(every_change(json.loads(good[name]), 120), use, "val.json", "results.json")


def annotations(_: Workshop) -> Iterator[Case]:
    """The annotations of a data set."""
    yield from _evaluated("val.json")


def results(_: Workshop) -> Iterator[Case]:
    """A results file in the form of YTVIS."""
    yield from _evaluated("results.json")


ROWS = {
    "finished": finished,
    "contradictions": contradictions,
    "annotations": annotations,
    "results": results,
}
