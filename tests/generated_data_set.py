"""A small data set in YTVIS's format: generated videos as folders of images, with their masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from generated_annotations import compressed
from PIL import Image

from openvis_rt.runtime.video.generated import SAMPLE_CLASSES, sample_frames, sample_names


def write_data_set(
    folder: Path,
    *,
    videos: int = 2,
    frames: int = 4,
    width: int = 96,
    height: int = 64,
    objects: int = 3,
    same_seed: bool = False,
    step: int = 1,
) -> tuple[Path, Path]:
    """Write ``annotations.json`` and ``frames/``; video k begins where video k - 1 ends.

    Args:
        same_seed: all videos show the same objects.
        step: only every so many frames are annotated; all are written.
    """
    data = {
        "videos": [],
        "annotations": [],
        "categories": [{"id": 3 + 2 * i, "name": n} for i, n in enumerate(SAMPLE_CLASSES)],
    }
    ids = {entry["name"]: entry["id"] for entry in data["categories"]}
    for number in range(videos):
        name = f"clip-{number}"
        (folder / "frames" / name).mkdir(parents=True)
        shown = sample_frames(
            width=width,
            height=height,
            fps=10,
            seconds=frames / 10,
            seed=0 if same_seed else number,
            objects=objects,
        )
        names, masks = [], []
        for index, (image, mask) in enumerate(shown):
            path = f"{name}/{index:05}.jpg"
            Image.fromarray(image).save(folder / "frames" / path, quality=95)
            if index % step == 0:
                names.append(path)
                masks.append(mask)
        video = {"id": 10 + number, "width": width, "height": height, "file_names": names}
        data["videos"].append({**video, "length": len(names)})
        for index, kind in enumerate(sample_names(objects)):
            track = [m[index] if m[index].any() else None for m in masks]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "video_id": video["id"],
                    "category_id": ids[kind],
                    "iscrowd": 0,
                    "segmentations": [None if m is None else compressed(m) for m in track],
                    "areas": [None if m is None else int(np.sum(m)) for m in track],
                }
            )
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    return path, folder / "frames"
