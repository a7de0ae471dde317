"""Parity with the public implementation: largest error of every stage, as a table.

    python benchmarks/parity.py [REFERENCE_DIR]

Each stage is fed with the reference's own inputs, since end to end one attention-mask bit that
flips on float rounding moves queries by 1e-3 and more. `error` is the largest absolute difference
over the largest value of the stage's output, but for scores, shares and masks, which are absolute.
Nothing is timed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from openvis_rt.bundle import Bundle
from openvis_rt.export.bundle_export import export_bundle
from openvis_rt.models import clip_vis
from openvis_rt.models.checkpoint import model_from_checkpoint
from openvis_rt.runtime.association import TemporalTopK
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.clip_pipeline import ClipPipeline
from openvis_rt.runtime.clip_vis import ClipVis
from openvis_rt.runtime.onnxruntime_session import OnnxRuntime
from openvis_rt.runtime.results import VideoInstance, decode_mask
from openvis_rt.runtime.scoring import VideoScores, merge_synonyms
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.video import Frame

Array = np.ndarray[Any, Any]

STAGE = 1e-5  # sums in another order, relative to the stage's scale
FLIPS = 5e-3  # end to end: attention-mask bits flip on rounding (two runs of the public code: 1e-3)


@dataclass(frozen=True)
class Row:
    """One comparison: the stage, its error, and the largest error that passes."""

    stage: str
    error: float
    gate: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its gate."""
        return self.error <= self.gate


@dataclass(frozen=True)
class Reference:
    """Numbers of a public run, and the checkpoint that rebuilds its weights."""

    name: str
    variant: str
    arrays: dict[str, Array]
    weights: Path

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    @property
    def frames(self) -> Array:
        """uint8 [T, H, W, 3]."""
        return np.ascontiguousarray(self.arrays["frames_uint8"].transpose(0, 2, 3, 1))

    @property
    def rows_of_class(self) -> list[int]:
        """Synonyms of each class."""
        return [int(n) for n in self.arrays["text/num_templates"]]


def references(folder: Path) -> list[str]:
    """Names of the CLIP-VIS references that lie in a folder."""
    return sorted(p.stem for p in folder.glob("clip-vis-*.npz"))


def load_reference(folder: Path, name: str, work: Path) -> Reference:
    """Read a reference and write its weights into ``work``, as an official checkpoint."""
    seeded = _module(folder / "seeded_weights.py")
    state = seeded.state_dict(seeded.load(folder / f"{name}.weights.json"))
    weights = work / f"{name}.pth"
    torch.save({"model": {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}}, weights)
    variant = "clip-vis-convnext-b" if "convnext" in name else "clip-vis-r50"
    with np.load(folder / f"{name}.npz") as arrays:
        return Reference(name, variant, dict(arrays), weights)


def torch_rows(ref: Reference, model: clip_vis.ClipVis) -> Iterator[Row]:
    """PyTorch, stage by stage on the reference's own inputs, then end to end."""
    head = model.sem_seg_head
    yield _row(
        "normalise", model.normalise(torch.from_numpy(ref.frames[:1])), ref["images_normalised"]
    )
    features = model.backbone(ref["images_normalised"])
    for name, found in features.items():
        yield _row(f"backbone {name}", found, ref[f"backbone/{name}"])
    given = {name: ref[f"backbone/{name}"] for name in features}
    mask_features, memory = head.pixel_decoder(given)
    yield _row("pixel decoder mask features", mask_features, ref["pixel_decoder/mask_features"])
    levels = [ref[f"pixel_decoder/multi_scale/{i}"] for i in range(3)]
    for i, (found, wanted) in enumerate(zip(memory, levels, strict=True)):
        yield _row(f"pixel decoder memory {i}", found, wanted)
    yield from _decoder_rows(ref, model, levels)
    yield from _classifier_rows(ref, model)
    found = model.propose(torch.from_numpy(ref.frames))
    yield _row("end to end queries", found.queries, ref["frame_out/pred_embds"], FLIPS)
    yield _row("end to end mask logits", found.mask_logits[:1], ref["frame_out/pred_masks"], FLIPS)
    yield _row(
        "end to end object logits", found.object_logits, ref["frame_out/pred_object_logits"], FLIPS
    )
    yield _row("end to end IoU", found.mask_iou, ref["frame_out/pred_ious"][..., 0], FLIPS)


def _decoder_rows(
    ref: Reference, model: clip_vis.ClipVis, levels: list[torch.Tensor]
) -> Iterator[Row]:
    decoder = model.sem_seg_head.predictor
    mask_features = ref["pixel_decoder/mask_features"]
    for index in range(decoder.layers):
        query = ref[f"dec/{index}/query"][:, :1].transpose(0, 1)
        logits = decoder.mask_logits(query, mask_features)
        if f"dec/{index}/masks" in ref.arrays:
            yield _row(f"decoder {index} mask logits", logits, ref[f"dec/{index}/masks"])
        found = decoder.layer(index, query, levels[index % 3], logits)
        wanted = ref[f"dec/{index + 1}/query"][:, :1].transpose(0, 1)
        yield _row(f"decoder layer {index + 1}", found, wanted)
    for index in range(decoder.layers + 1):
        normed = decoder.decoder_norm(ref[f"dec/{index}/query"].transpose(0, 1))
        objects, iou = decoder.heads(normed)
        yield _row(f"heads {index} object logits", objects, ref[f"dec/{index}/obj_logits"])
        yield _row(f"heads {index} IoU", iou, ref[f"dec/{index}/iou"][..., 0])


def _classifier_rows(ref: Reference, model: clip_vis.ClipVis) -> Iterator[Row]:
    templates = 14
    raw = model.backbone.encode_text(ref["text/tokens_first"])
    unit = F.normalize(raw, dim=-1).unflatten(0, (-1, templates)).mean(1)
    wanted = ref["text/classifier"][: len(unit)]
    yield _row("text embeddings", F.normalize(unit, dim=-1), wanted)
    scale = model.backbone.logit_scale()
    yield _row("logit scale", scale, ref["text/logit_scale"].exp().clamp(max=100))
    mask = model.pool_mask(ref["frame_out/pred_masks"])[0]
    tokens, scores = model.classify(ref["backbone/clip_vis_dense"], mask, ref["text/classifier"])
    yield _row("pooled features", tokens, ref["pooled_clip/0"][0])
    found = merge_synonyms(scores.numpy(), ref.rows_of_class)
    wanted = ref.arrays["final/per_frame_cls_softmax_q_t_c"][:, 0]
    yield Row("class probabilities (absolute)", float(np.abs(found - wanted).max()), STAGE)


def scoring_rows(ref: Reference) -> Iterator[Row]:
    """Association and video-level scores in numpy, on the reference's own frame outputs."""
    probabilities = ref.arrays["final/per_frame_cls_softmax_q_t_c"]
    with closing(VideoScores(*probabilities.shape[::2])) as scores:
        wrong = _feed(ref, scores, probabilities)
        yield Row("association (wrong indices)", float(wrong), 0.0)
        error = np.abs(scores.scores() - ref.arrays["final/scores_q_c"]).max()
        yield Row("video scores S (absolute)", float(error), STAGE)
        public = _public_detections(ref)
        found = {(d.track, d.category): d.score for d in scores.detections(len(public))}
    yield Row("detections that differ", float(len(found.keys() ^ public.keys())), 0.0)
    errors = [
        abs(found[k] - ref.arrays["result/scores"][j]) for k, j in public.items() if k in found
    ]
    yield Row("final scores (absolute)", float(max(errors)), STAGE)


def _feed(ref: Reference, scores: VideoScores, probabilities: Array) -> int:
    """Add every frame; returns how many indices of the association are wrong.

    The public arrays hold the masks of the detected tracks alone; the others' areas do not matter.
    """
    tracker = _tracker(ref)
    masks = ref.arrays["result/masks_stride4_after_ignore"].astype(np.float64)
    area, mass = np.ones((2, len(probabilities), masks.shape[1]), np.float32)
    for (track, _), index in _public_detections(ref).items():
        area[track] = (masks[index] > 0).sum((1, 2))
        mass[track] = ((masks[index] > 0) / (1 + np.exp(-masks[index]))).sum((1, 2))
    wrong = 0
    for t in range(probabilities.shape[1]):
        order = tracker.step(ref.arrays["frame_out/pred_embds"][t])
        wrong += int((order != ref.arrays["tracked/indices"][t]).sum())
        scores.add(
            probabilities[:, t],
            ref.arrays["frame_out/pred_ious"][t, :, 0][order],
            ref.arrays["frame_out/pred_object_logits"][t][order],
            area[:, t],
            mass[:, t],
        )
    return wrong


def _tracker(ref: Reference) -> TemporalTopK:
    return TemporalTopK(int(ref.arrays["config/num_t"]), int(ref.arrays["config/num_k"]))


def _public_detections(ref: Reference) -> dict[tuple[int, int], int]:
    """(track, class) of each public detection, to its place in the `result/` arrays.

    The public list does not name the track; score over mean mask probability is S, which does.
    """
    masks = ref.arrays["result/masks_stride4_after_ignore"].astype(np.float64)
    inside = masks > 0
    quality = (inside / (1 + np.exp(-masks))).sum((1, 2, 3)) / (inside.sum((1, 2, 3)) + 1e-6)
    out = {}
    for index, category in enumerate(ref.arrays["result/classes"].tolist()):
        wanted = ref.arrays["result/scores"][index] / quality[index]
        track = int(np.abs(ref.arrays["final/scores_q_c"][:, category] - wanted).argmin())
        out[track, category] = index
    return out


def runtime_rows(ref: Reference, bundle: Bundle) -> Iterator[Row]:
    """The exported graphs in ONNX Runtime through the whole pipeline, against the public results.

    Detections are matched by track and class. Masks are compared as 1 - IoU, averaged over them.
    """
    found = _run_pipeline(ref, bundle)
    public = _public_detections(ref)
    common = [k for k in public if k in found]
    # near-equal scores trade places at the end of the list
    yield Row("ONNX Runtime detections that differ", float(len(public) - len(common)), 2.0)
    errors = [abs(found[k].score - ref.arrays["result/scores"][public[k]]) for k in common]
    yield Row("ONNX Runtime video scores (absolute)", float(max(errors)), FLIPS)
    masks = ref["result/masks_stride4_after_ignore"]
    size = ref.frames.shape[1:3]
    full = F.interpolate(masks, size=size, mode="bilinear", align_corners=False).numpy() > 0
    losses = []
    for key in common:
        mine = np.stack([decode_mask(r) for r in found[key].segmentations]).astype(bool)
        true = full[public[key]]
        losses.append(1 - (mine & true).sum() / max(1, (mine | true).sum()))
    yield Row("ONNX Runtime result masks (1 - IoU)", float(np.mean(losses)), 1e-2)


def _run_pipeline(ref: Reference, bundle: Bundle) -> dict[tuple[int, int], VideoInstance]:
    """As many detections as the public run reports, by track and class."""
    factory = OnnxRuntime("cpu")
    family = ClipVis(_tracker(ref))
    pipeline = ClipPipeline(bundle, family, factory, "fp32", Selection(), keep_video=True)
    rows = ref.rows_of_class
    names = tuple(f"class {index}" for index in range(len(rows)))
    pipeline.set_classifier(Classifier(names, rows, ref.arrays["text/classifier"]))
    for index, frame in enumerate(ref.frames):
        pipeline.submit([Frame(index, None, frame)])
        pipeline.collect()
    instances = pipeline.finish().instances[: len(ref.arrays["result/scores"])]
    pipeline.close()
    return {(i.track_id, i.category_id): i for i in instances}


def _row(stage: str, found: torch.Tensor, wanted: torch.Tensor, gate: float = STAGE) -> Row:
    error = float((found - wanted).abs().max() / wanted.abs().max())
    return Row(stage, error, gate)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print the table of every reference; exit code 4 if a gate is missed."""
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OPENVIS_REFERENCE")
    folder = Path(given or Path(__file__).parents[2] / "shared" / "reference")
    names = references(folder)
    if not names:
        sys.exit(f"no clip-vis-*.npz in {folder}; give the folder or set OPENVIS_REFERENCE")
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory() as work, torch.inference_mode():
            ref = load_reference(folder, name, Path(work))
            model = model_from_checkpoint(ref.variant, ref.weights)
            rows = [*torch_rows(ref, model), *scoring_rows(ref)]
        with tempfile.TemporaryDirectory() as work:
            size = (int(ref.frames.shape[1]), int(ref.frames.shape[2]))
            out = export_bundle(
                model,
                Path(work) / "b",
                network_size=size,
                precisions=("fp32",),
                checkpoint={"file": name},
            )
            rows += runtime_rows(ref, out.bundle)
        print(f"\n{name} ({ref.variant})")
        for row in rows:
            verdict = "ok" if row.passed else "FAILED"
            print(f"  {row.stage:40s} {row.error:9.1e}  gate {row.gate:.0e}  {verdict}")
            failed |= not row.passed
    sys.exit(4 if failed else 0)


if __name__ == "__main__":
    main()
