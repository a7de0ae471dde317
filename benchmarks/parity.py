"""Parity with the public implementation: largest error of every stage, as a table.

    python benchmarks/parity.py [REFERENCE_DIR]

Each stage is fed with the reference's own inputs, since end to end one attention-mask bit that
flips on float rounding moves queries by 1e-3 and more. `error` is the largest absolute difference
over the largest value of the stage's output, but for scores, shares and masks, which are absolute.
Nothing is timed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import parity_ovformer
import torch
from reference import (
    FLIPS,
    STAGE,
    Array,
    Reference,
    Row,
    load_reference,
    reference_folder,
    references,
    row,
)
from torch.nn import functional as F

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.load import load_model
from openvis_rt.export.bundle import export_bundle
from openvis_rt.models import clip_vis
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.options import TrackingOptions
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.tracking.association import TemporalTopK
from openvis_rt.runtime.tracking.scoring import FrameProbabilities, merge_synonyms
from openvis_rt.runtime.video.results import VideoInstance
from openvis_rt.runtime.video.run_lengths import decode_mask


def torch_rows(ref: Reference, model: clip_vis.ClipVis) -> Iterator[Row]:
    """PyTorch, stage by stage on the reference's own inputs, then end to end."""
    head = model.sem_seg_head
    yield row(
        "normalise", model.normalise(torch.from_numpy(ref.frames[:1])), ref["images_normalised"]
    )
    features = model.backbone(ref["images_normalised"])
    for name, found in features.items():
        yield row(f"backbone {name}", found, ref[f"backbone/{name}"])
    given = {name: ref[f"backbone/{name}"] for name in features}
    mask_features, memory = head.pixel_decoder(given)
    yield row("pixel decoder mask features", mask_features, ref["pixel_decoder/mask_features"])
    levels = [ref[f"pixel_decoder/multi_scale/{i}"] for i in range(3)]
    for i, (found, wanted) in enumerate(zip(memory, levels, strict=True)):
        yield row(f"pixel decoder memory {i}", found, wanted)
    yield from _decoder_rows(ref, model, levels)
    yield from _classifier_rows(ref, model)
    frames = [model.propose(torch.from_numpy(frame[None])) for frame in ref.frames]
    found = {name: torch.stack([frame[name] for frame in frames]) for name in frames[0]}
    masks, objects = found["mask_logits"][:1, :, 0], found["object_logits"]
    yield row("end to end queries", found["queries"], ref["frame_out/pred_embds"], FLIPS)
    yield row("end to end mask logits", masks, ref["frame_out/pred_masks"], FLIPS)
    yield row("end to end object logits", objects, ref["frame_out/pred_object_logits"], FLIPS)
    yield row("end to end IoU", found["mask_iou"], ref["frame_out/pred_ious"][..., 0], FLIPS)


def _decoder_rows(
    ref: Reference, model: clip_vis.ClipVis, levels: list[torch.Tensor]
) -> Iterator[Row]:
    decoder = model.sem_seg_head.predictor
    mask_features = ref["pixel_decoder/mask_features"]
    for index in range(decoder.layers):
        query = ref[f"dec/{index}/query"][:, :1].transpose(0, 1)
        logits, level = decoder.mask_logits(query, mask_features), levels[index % 3]
        if f"dec/{index}/masks" in ref.arrays:
            yield row(f"decoder {index} mask logits", logits, ref[f"dec/{index}/masks"])
        public = F.interpolate(logits, level.shape[-2:], mode="bilinear", align_corners=False)
        small = decoder.mask_logits(query, decoder.features_at(mask_features, level))
        yield row(f"decoder {index} mask logits at the level", small, public)
        flipped = public.abs()[(small < 0) != (public.sigmoid() < 0.5)]
        largest = float(flipped.max() / public.abs().max()) if flipped.numel() else 0.0
        yield Row(f"decoder {index} largest logit of a flipped bit", largest, STAGE)
        # with the public order's bits: one that rounding flips is no error of the layer
        found = decoder.layer(index, query, level, public)
        wanted = ref[f"dec/{index + 1}/query"][:, :1].transpose(0, 1)
        yield row(f"decoder layer {index + 1}", found, wanted)
    for index in range(decoder.layers + 1):
        normed = decoder.decoder_norm(ref[f"dec/{index}/query"].transpose(0, 1))
        objects, iou = decoder.heads(normed)
        yield row(f"heads {index} object logits", objects, ref[f"dec/{index}/obj_logits"])
        yield row(f"heads {index} IoU", iou, ref[f"dec/{index}/iou"][..., 0])


def _classifier_rows(ref: Reference, model: clip_vis.ClipVis) -> Iterator[Row]:
    templates = 14
    raw = model.text(ref["text/tokens_first"])["embeddings"]
    unit = F.normalize(raw, dim=-1).unflatten(0, (-1, templates)).mean(1)
    wanted = ref["text/classifier"][: len(unit)]
    yield row("text embeddings", F.normalize(unit, dim=-1), wanted)
    scale = model.backbone.logit_scale()
    yield row("logit scale", scale, ref["text/logit_scale"].exp().clamp(max=100))
    mask = model.pool_mask(ref["frame_out/pred_masks"])[0]
    made = model.classify(ref["backbone/clip_vis_dense"], mask, ref["text/classifier"])
    yield row("pooled features", made["instance_tokens"], ref["pooled_clip/0"][0])
    found = merge_synonyms(made["class_scores"].numpy(), ref.rows_of_class)
    wanted = ref.arrays["final/per_frame_cls_softmax_q_t_c"][:, 0]
    yield Row("class probabilities (absolute)", float(np.abs(found - wanted).max()), STAGE)


def scoring_rows(ref: Reference) -> Iterator[Row]:
    """Association and video-level scores in numpy, on the reference's own frame outputs."""
    probabilities = ref.arrays["final/per_frame_cls_softmax_q_t_c"]
    tracks, _, classes = probabilities.shape
    with closing(FrameProbabilities(tracks, [1] * classes)) as scores:
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


def _feed(ref: Reference, scores: FrameProbabilities, probabilities: Array) -> int:
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
    rows = ref.rows_of_class
    names = tuple(f"class {index}" for index in range(len(rows)))
    tracking = TrackingOptions(
        frames=int(ref.arrays["config/num_t"]), top_k=int(ref.arrays["config/num_k"])
    )
    with Pipeline.open(
        bundle,
        vocabulary=names,
        classifier=Classifier(names, rows, ref.arrays["text/classifier"]),
        backend=OnnxRuntime("cpu"),
        tracking=tracking,
    ) as pipeline:
        for frame in ref.frames:
            pipeline.step(frame)
        instances = pipeline.finish().instances[: len(ref.arrays["result/scores"])]
    return {(i.track_id, i.category_id - 1): i for i in instances}


def all_rows(ref: Reference, work: Path) -> Iterator[Row]:
    """Every comparison."""
    model = load_model(ref.variant, ref.weights).model
    assert isinstance(model, clip_vis.ClipVis)
    with torch.inference_mode():
        yield from torch_rows(ref, model)
        yield from scoring_rows(ref)
    _, height, width, _ = ref.frames.shape
    result = export_bundle(
        model,
        work / "bundle",
        network_size=(height, width),
        precisions=("fp32",),
        checkpoint={"file": ref.name},
    )
    yield from runtime_rows(ref, result.bundle)


SYSTEMS = {
    "clip-vis": all_rows,
    "ovformer-video": parity_ovformer.all_rows,
    "minvis": parity_ovformer.all_rows,
}


def main() -> None:
    """Print the table of every reference; exit code 4 if a gate is missed."""
    folder = reference_folder()
    names = [
        (name, rows) for system, rows in SYSTEMS.items() for name in references(folder, system)
    ]
    if not names:
        sys.exit(f"no reference in {folder}; give the folder or set OPENVIS_REFERENCE")
    failed = False
    for name, rows in names:
        with tempfile.TemporaryDirectory() as work:
            print(f"\n{name}", flush=True)
            for found in rows(load_reference(folder, name, Path(work)), Path(work)):
                verdict = "ok" if found.passed else "FAILED"
                print(f"  {found.stage:40s} {found.error:9.1e}  gate {found.gate:.0e}  {verdict}")
                failed |= not found.passed
    sys.exit(4 if failed else 0)


if __name__ == "__main__":
    main()
