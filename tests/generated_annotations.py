"""Small random data sets for the evaluator: annotations and results that more or less fit them.

Masks are boxes with holes, so that all areas and IoUs are whole numbers and their ratios; scores
have one decimal, so that many are equal; tracks and frames are missing on both sides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from openvis_rt.runtime.video.run_lengths import encode_masks


@dataclass
class Generated:
    """An annotation file and a results file, as JSON types."""

    annotations: dict[str, Any]
    results: list[dict[str, Any]]


def generate(
    seed: int,
    *,
    videos: int = 6,
    categories: int = 4,
    tracks: int = 6,
    predictions: int = 12,
    frames: tuple[int, int] = (1, 5),
    sizes: tuple[tuple[int, int], ...] = ((40, 60), (300, 360)),
    crowd: float = 0.2,
    missing: float = 0.25,
    shuffled: bool = False,
) -> Generated:
    """A data set, the same for the same arguments.

    Args:
        tracks, predictions: the most of one video.
        crowd: the part of tracks that are crowds.
        missing: the part of frames that do not show an object; a track may have none at all.
        shuffled: neither video nor category ids are in order.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(videos) + 1 if shuffled else np.arange(videos) + 1
    names = rng.permutation(categories) + 1 if shuffled else np.arange(categories) + 1
    data: dict[str, Any] = {
        "videos": [],
        "annotations": [],
        "categories": [{"id": int(number), "name": f"class {number}"} for number in names],
    }
    results = []
    for video in ids.tolist():
        height, width = sizes[rng.integers(len(sizes))]
        length = int(rng.integers(frames[0], frames[1] + 1))
        data["videos"].append(
            {
                "id": video,
                "height": height,
                "width": width,
                "length": length,
                "file_names": [f"video{video:03}/{frame:05}.jpg" for frame in range(length)],
            }
        )
        truths = []
        for _ in range(rng.integers(tracks + 1)):
            masks = _track(rng, length, height, width, missing)
            category = int(rng.choice(names))
            truths.append((category, masks))
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "video_id": video,
                    "category_id": category,
                    "iscrowd": int(rng.random() < crowd),
                    "height": height,
                    "width": width,
                    "segmentations": [None if m is None else uncompressed(m) for m in masks],
                    "areas": [None if m is None else int(m.sum()) for m in masks],
                    "bboxes": [None] * length,
                }
            )
        for _ in range(rng.integers(predictions + 1)):
            if truths and rng.random() < 0.8:
                category, masks = truths[rng.integers(len(truths))]
                masks = [_changed(rng, mask, missing / 3) for mask in masks]
                if rng.random() < 0.15:
                    category = int(rng.choice(names))
            else:
                category = int(rng.choice(names))
                masks = _track(rng, length, height, width, missing)
            results.append(
                {
                    "video_id": video,
                    "category_id": category,
                    "score": round(float(rng.random()), 1),
                    "segmentations": [None if m is None else compressed(m) for m in masks],
                }
            )
    if shuffled:
        results = [results[index] for index in rng.permutation(len(results))]
    return Generated(data, results)


def _track(
    rng: np.random.Generator, length: int, height: int, width: int, missing: float
) -> list[np.ndarray | None]:
    masks: list[np.ndarray | None] = []
    for _ in range(length):
        mask = np.zeros((height, width), np.uint8)
        top, left = rng.integers(height - 2), rng.integers(width - 2)
        bottom, right = rng.integers(top + 1, height), rng.integers(left + 1, width)
        mask[top : bottom + 1, left : right + 1] = 1
        mask[top : top + 2, left] = rng.integers(2)
        masks.append(None if rng.random() < missing or not mask.any() else mask)
    return masks


def _changed(
    rng: np.random.Generator, mask: np.ndarray | None, missing: float
) -> np.ndarray | None:
    """A prediction of a mask: some rows fewer, or moved, or exact, or missing."""
    if mask is None or rng.random() < missing:
        return None
    out, kind = mask.copy(), rng.integers(4)
    if kind == 1:
        rows = np.flatnonzero(mask.any(1))
        out[rows[: rng.integers(len(rows))]] = 0
    elif kind == 2:
        out = np.roll(mask, int(rng.integers(1, 4)), axis=1)
    elif kind == 3:
        out[:, : rng.integers(mask.shape[1] // 2)] = 0
    return out if out.any() else None


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's text form."""
    return dict(encode_masks(mask[None].astype(np.uint8))[0])


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's list form."""
    flat = np.concatenate(([0], mask.T.reshape(-1), [0]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()
    if counts[-1] == 0:
        counts = counts[:-1]
    return {"size": list(mask.shape), "counts": counts}


def rle_of(segmentation: dict[str, Any] | None) -> dict[str, Any] | None:
    """Either form as pycocotools takes it."""
    if segmentation is None or isinstance(segmentation["counts"], str):
        return segmentation
    return coco.frPyObjects(segmentation, *segmentation["size"])


def write(folder: Path, data: Generated) -> tuple[Path, Path]:
    """Both as files: annotations, results."""
    paths = folder / "annotations.json", folder / "results.json"
    for path, value in zip(paths, (data.annotations, data.results), strict=True):
        path.write_text(json.dumps(value))
    return paths


TAO_IDS = (4, 13, 347, 504, 207, 554, 5, 20)
"""Categories of BURST: two common, cup and its glass, cap and its hat, one, a distractor."""


def burst_from(data: Generated, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A data set of eight categories in BURST's form: annotations, results.

    Frames of a predicted track have scores of their own, and not every class is annotated in every
    video.
    """
    rng = np.random.default_rng(seed)
    ids = {number: TAO_IDS[number - 1] for number in range(1, 9)}
    truth = {
        "split": "val",
        "sequences": [],
        "categories": [dict(entry) for entry in _TAO_CATEGORIES],
    }
    results = {"split": "val", "sequences": []}
    for video in data.annotations["videos"]:
        common = {
            "id": video["id"],
            "dataset": "GEN",
            "seq_name": f"video_{video['id']}",
            "height": video["height"],
            "width": video["width"],
            "annotated_image_paths": [f"frame{10 * i:04}.jpg" for i in range(video["length"])],
        }
        others = [e for e in data.annotations["annotations"] if e["video_id"] == video["id"]]
        shown = {ids[e["category_id"]] for e in others}
        absent = [i for i in TAO_IDS if i not in shown]
        truth["sequences"].append(
            {
                **common,
                **_burst_frames(others, video["length"], ids, None),
                "neg_category_ids": [i for i in absent if rng.random() < 0.5],
                "not_exhaustive_category_ids": [i for i in TAO_IDS if rng.random() < 0.2],
            }
        )
        found = [e for e in data.results if e["video_id"] == video["id"]]
        results["sequences"].append({**common, **_burst_frames(found, video["length"], ids, rng)})
    return truth, results


def _burst_frames(
    entries: list[dict[str, Any]],
    length: int,
    ids: dict[int, int],
    rng: np.random.Generator | None,
) -> dict[str, Any]:
    frames: list[dict[str, Any]] = [{} for _ in range(length)]
    for number, entry in enumerate(entries, 1):
        for frame, segmentation in zip(frames, entry["segmentations"], strict=True):
            if segmentation is None:
                continue
            counts = rle_of(segmentation)["counts"]
            rle = counts if isinstance(counts, str) else counts.decode()
            frame[str(number)] = {"rle": rle}
            if rng is not None:
                frame[str(number)]["score"] = round(float(rng.random()), 1)
    classes = {str(n): ids[e["category_id"]] for n, e in enumerate(entries, 1)}
    return {"segmentations": frames, "track_category_ids": classes}


_TAO_CATEGORIES = [
    {"id": number, "name": name}
    for number, name in (
        *((4, "airplane"), (5, "alarm_clock"), (13, "apple"), (20, "ashtray"), (207, "cap")),
        *((347, "cup"), (504, "glass"), (554, "hat")),
    )
]
