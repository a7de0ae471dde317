"""Results that somebody else wrote: what `convert` reads, and what `eval` measures."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
FORMS = ("csv", "coco", "mot", "mots", "html")


def finished(_: Workshop) -> Iterator[Case]:
    """The folder of a run: each line of its frames, and its categories."""
    found = {"id": 1, "name": "disc", "category_id": 1, "score": 0.5, "box": [1, 0, 2, 4]}
    frame = {"frame": 0, "time": 0.0, "size": SIZE, "instances": [{**found, "segmentation": MASK}]}
    line = json.dumps(frame)
    result_from_line(line)  # what the others are changed from is good
    categories = [{"id": 1, "name": "disc"}]
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


ROWS = {"finished": finished, "annotations": annotations, "results": results}
