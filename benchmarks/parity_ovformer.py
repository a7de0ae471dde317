"""Parity of VideoOVFormer and MinVIS with the public implementations; see `parity.py`.

Stages are fed with the reference's own inputs; `window 1` and `window 2` are the reference's
windows of 5 and 2 frames. The reference's classifier is the checkpoint's buffer as it stands, not
normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference import FLIPS, STAGE, Array, Reference, Row, row

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.load import load_model
from openvis_rt.checkpoints.weights import read_weights
from openvis_rt.export.bundle import export_bundle
from openvis_rt.models.minvis import MinVis
from openvis_rt.models.ovformer import OVFormer
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.options import TrackingOptions
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.preprocessing import clip_picture
from openvis_rt.runtime.tracking.association import Momentum
from openvis_rt.runtime.tracking.mean_logits import (
    FORMULAS,
    MeanLogits,
)
from openvis_rt.runtime.video.results import VideoResult
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD

WINDOWS = ((0, 5), (5, 7))
_CLASSIFIER = "sem_seg_head.predictor.class_embed.zs_weight"


def text_rows(ref: Reference) -> torch.Tensor:
    """The reference's classifier, float32 [classes + 1, D]."""
    return read_weights(ref.weights).tensors[_CLASSIFIER].T.contiguous()


def stage_rows(ref: Reference, model: OVFormer) -> Iterator[Row]:
    """PyTorch, stage by stage on the reference's own inputs."""
    picture = (clip_picture(ref.frames[0], 224) - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    found = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))
    yield row("CLIP's picture of frame 1", found, ref["clip/preprocessed"])
    network = model.network
    images = model.normalise(torch.from_numpy(ref.frames[5:6]))
    yield row("normalise", images, ref["win1/images_normalised"])
    names = sorted(key for key in ref.arrays if key.startswith("win1/backbone/"))
    for index, found in enumerate(network.backbone(images).values()):
        yield row(f"backbone res{index + 2}", found, ref[names[index]])
    given = {f"res{index + 2}": ref[name] for index, name in enumerate(names)}
    mask_features, memory = network.sem_seg_head.pixel_decoder(given)
    wanted = ref["win0/pixel_decoder/mask_features"]
    yield row("pixel decoder mask features", mask_features, wanted[:1])
    levels = [ref[f"win0/pixel_decoder/multi_scale/{i}"] for i in range(3)]
    for index, (found, level) in enumerate(zip(memory, levels, strict=True)):
        yield row(f"pixel decoder memory {index}", found, level[:1])
    yield from _decoder_rows(ref, model, wanted, levels)
    for window in range(len(WINDOWS)):
        logits = model.classify(
            ref[f"win{window}/pred_embds"][0],
            text_rows(ref),
            ref[f"win{window}/features_clip"][:, 0],
        )["class_scores"]
        yield row(f"window {window + 1} class logits", logits, ref[f"win{window}/pred_logits"][0])
        objects = network.predictor.object_embed(ref[f"win{window}/pred_embds"][0])
        wanted = ref[f"win{window}/pred_object_logits"][0]
        yield row(f"window {window + 1} object logits", objects, wanted)


def _decoder_rows(
    ref: Reference, model: OVFormer, mask_features: torch.Tensor, levels: list[torch.Tensor]
) -> Iterator[Row]:
    """The second window through the decoder, from the reference's memory."""
    decoder = model.network.predictor
    query = decoder.first_queries(mask_features)
    small = [decoder.features_at(mask_features, level) for level in levels]
    for index in range(decoder.layers):
        if f"win1/aux{index}/pred_logits" in ref.arrays:
            normed = decoder.decoder_norm(query)[0]
            pictures = ref["win1/features_clip"][:, 0]
            logits = model.classify(normed, text_rows(ref), pictures)["class_scores"]
            wanted = ref[f"win1/aux{index}/pred_logits"][0]
            yield row(f"window 2 class logits after {index} layers", logits, wanted)
            objects = decoder.object_embed(normed)
            wanted = ref[f"win1/aux{index}/pred_object_logits"][0]
            yield row(f"window 2 object logits after {index} layers", objects, wanted)
        masks = decoder.mask_logits(query, small[index % 3])
        query = decoder.layer(index, query, levels[index % 3], masks)
    yield row("window 2 queries", decoder.decoder_norm(query), ref["win1/pred_embds"])
    masks = decoder.mask_logits(query, mask_features)
    yield row("window 2 mask logits", masks, ref["win1/pred_masks"])


def end_to_end_rows(ref: Reference, model: OVFormer) -> Iterator[Row]:
    """PyTorch from frames, clip by clip."""
    for window, (begin, end) in enumerate(WINDOWS):
        found = model.propose(torch.from_numpy(ref.frames[begin:end]))
        key, title = f"win{window}", f"window {window + 1} end to end"
        yield row(f"{title} queries", found["queries"], ref[f"{key}/pred_embds"][0], FLIPS)
        wanted = ref[f"{key}/pred_object_logits"][0]
        yield row(f"{title} object logits", found["object_logits"], wanted, FLIPS)
        if f"{key}/pred_masks" in ref.arrays:
            wanted = ref[f"{key}/pred_masks"][0]
            yield row(f"{title} mask logits", found["mask_logits"], wanted, FLIPS)


def video_rows(ref: Reference) -> Iterator[Row]:
    """Association and video scores in numpy, on the reference's own window outputs."""
    tracker, tracks = Momentum(), ref.arrays["win0/pred_embds"].shape[1]
    classes = ref.arrays["win0/pred_logits"].shape[-1] - 1
    sums = MeanLogits(
        tracks, [1] * classes, FORMULAS["sigmoid-objectness"], visible_only=False, keep=True
    )
    for window, (begin, end) in enumerate(WINDOWS):
        order = tracker.step(ref.arrays[f"win{window}/pred_embds"][0])
        if window:
            wrong = (order != ref.arrays["tracked/indices_from_second"][window - 1]).sum()
            yield Row("association (wrong indices)", float(wrong), 0.0)
        output = {
            "class_scores": ref.arrays[f"win{window}/pred_logits"][0][:, :-1],
            "object_logits": ref.arrays[f"win{window}/pred_object_logits"][0],
            "mask_area": np.ones((tracks, end - begin), np.float32),
        }
        sums.add_output(output, order)
    best = sums.detections(len(ref.arrays["result/scores"]))
    yield from _result_rows("", ref, [d.score for d in best], [d.category for d in best], STAGE)


def _result_rows(
    title: str, ref: Reference, scores: Sequence[float], labels: Sequence[int], gate: float
) -> Iterator[Row]:
    """The public list does not name tracks and is in no order: sorted scores, counted labels."""
    wanted = ref.arrays["result/scores"]
    error = np.abs(np.sort(scores) - np.sort(wanted)).max()
    yield Row(f"{title}video scores (absolute)", float(error), gate)
    found = np.bincount(labels, minlength=2000)
    differ = np.abs(found - np.bincount(ref.arrays["result/labels"], minlength=2000)).sum()
    # near-equal scores trade places at the end of the list
    yield Row(f"{title}labels that differ", float(differ) / 2, 0.0 if gate == STAGE else 2.0)


def runtime_rows(ref: Reference, bundle: Bundle) -> Iterator[Row]:
    """The exported graphs in ONNX Runtime through the whole pipeline, against the results."""
    embeddings: Array | None = ref.arrays.get("clip/image_features")
    texts = text_rows(ref)[:-1].numpy() if embeddings is not None else None
    video = _run(bundle, ref.frames, texts, embeddings, len(ref.arrays["result/scores"]))
    scores = [instance.score for instance in video.instances]
    labels = [instance.category_id - 1 for instance in video.instances]
    yield from _result_rows("ONNX Runtime ", ref, scores, labels, FLIPS)


def _run(
    bundle: Bundle, frames: Array, texts: Any, embeddings: Any, detections: int
) -> VideoResult:
    outputs = bundle.graph("classify").spec.outputs
    scores = next(t for t in outputs if t.name == "class_scores")
    classes = int(scores.shape[1]) - 1 if texts is None else len(texts)
    names = tuple(f"class {index}" for index in range(classes))
    with Pipeline.open(
        bundle,
        vocabulary=names,
        classifier=Classifier(names, [1] * classes, texts),
        image_embeddings=embeddings,
        backend=OnnxRuntime("cpu"),
        tracking=TrackingOptions(detections=detections),
    ) as pipeline:
        for _ in pipeline.stream(frames):
            pass
        return pipeline.finish()


def minvis_rows(ref: Reference, model: MinVis) -> Iterator[Row]:
    """MinVIS: association and scores on the reference's frame outputs, then end to end."""
    logits = ref.arrays["head/pred_logits"][0]
    queries = ref.arrays["head/pred_embds"][0].transpose(1, 2, 0)
    given = _minvis_scores(queries, logits)
    yield from _result_rows("", ref, *given, STAGE)
    found_queries, found_logits = [], []
    for frame in ref.frames:
        embeddings = model.propose(torch.from_numpy(frame[None]))["queries"]
        found_queries.append(embeddings.numpy())
        found_logits.append(model.classify(embeddings)["class_scores"].numpy())
    found = torch.from_numpy(np.stack(found_logits))
    yield row("end to end class logits", found, ref["head/pred_logits"][0], FLIPS)
    yield from _result_rows("end to end ", ref, *_minvis_scores(found_queries, found_logits), FLIPS)


def _minvis_scores(
    queries: Sequence[Array], logits: Sequence[Array]
) -> tuple[list[float], list[int]]:
    tracker, tracks = Momentum(), len(queries[0])
    formula = FORMULAS["softmax-without-last"]
    sums = MeanLogits(
        tracks, [1] * (logits[0].shape[1] - 1), formula, visible_only=False, keep=True
    )
    for embeddings, scores in zip(queries, logits, strict=True):
        area = np.ones(tracks, np.float32)
        sums.add_output({"class_scores": scores, "mask_area": area}, tracker.step(embeddings))
    best = sums.detections(10)
    return [d.score for d in best], [d.category for d in best]


def all_rows(ref: Reference, work: Path) -> Iterator[Row]:
    """Every comparison that a reference allows."""
    model = load_model(ref.variant, ref.weights).model
    with torch.inference_mode():
        if isinstance(model, MinVis):
            yield from minvis_rows(ref, model)
        else:
            assert isinstance(model, OVFormer)
            yield from stage_rows(ref, model)
            yield from end_to_end_rows(ref, model)
            yield from video_rows(ref)
    _, height, width, _ = ref.frames.shape
    result = export_bundle(
        model,
        work / ref.name,
        network_size=(height, width),
        precisions=("fp32",),
        checkpoint={"file": ref.name},
    )
    yield from runtime_rows(ref, result.bundle)
