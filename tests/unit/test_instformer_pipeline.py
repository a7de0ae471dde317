"""InstFormer through export, bundle and pipeline, in small."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from watched_backend import WatchedBackend

from openvis_rt import Pipeline, Selection, TrackingOptions
from openvis_rt.bundle.bundle import TRACKER, Bundle, write_manifest
from openvis_rt.errors import BundleError, InputError
from openvis_rt.runtime.video.generated import sample_frames

pytest.importorskip("torch", reason="exporting needs the extra [export]")

import torch
from tiny import NETWORK
from tiny_instformer import EMBED, tiny_instformer

from openvis_rt.export.bundle import export_bundle
from openvis_rt.runtime.tracking.association import hungarian, unit_rows
from openvis_rt.runtime.tracking.rollout import Cell
from openvis_rt.systems.instformer import Guidance, InstFormerConfig
from openvis_rt.systems.system import Score

WORDS = ("cat", "dog", "monkey, ape")
EVERYTHING = Selection(threshold=0.0, limit=20)


@pytest.fixture(scope="module")
def model():
    made = tiny_instformer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = torch.nn.RNN(256 + EMBED, 256 + EMBED)
    made.recurrence = {name: value.detach() for name, value in cell.state_dict().items()}
    return made


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("instformer") / "bundle"
    return export_bundle(
        model, path, network_size=NETWORK, precisions=("fp32",), checkpoint={"random_weights": 0}
    ).bundle


@pytest.fixture(scope="module")
def frames():
    made = sample_frames(width=NETWORK[1], height=NETWORK[0], fps=5, seconds=1.2, objects=2)
    return [image for image, _ in made]


def opened(bundle, **options):
    return Pipeline.open(bundle, vocabulary=WORDS, selection=EVERYTHING, **options)


def test_the_bundle_says_what_it_is(bundle):
    manifest = bundle.manifest
    assert manifest.system == "instformer"
    assert manifest.tracker.name == "rollout"
    assert manifest.tracker.tokens == ("queries", "instance_tokens")
    assert manifest.score == Score("mean-logits", {"formula": "softmax", "visible_only": True})
    assert TRACKER in manifest.files
    inputs = [t.name for t in bundle.graph("classify").spec.inputs]
    assert inputs == ["frames", "guidance_mask", "text_embeddings"]
    shapes = {t.name: t.shape for t in bundle.graph("propose").spec.outputs}
    assert shapes["guidance_mask"] == (10, 2 * 3)  # 64x96 in patches of 32


def by_hand(model, frames, embeddings):
    """The video in PyTorch and plain numpy, stage by stage, from the definitions."""
    cell = Cell({k: v.numpy() for k, v in model.recurrence.items()})
    last, logits, orders = None, [], []
    for frame in frames:
        with torch.inference_mode():
            x = torch.from_numpy(frame)[None]
            found = model.propose(x)
            made = model.classify(x, found["guidance_mask"], torch.from_numpy(embeddings))
        tokens, scores = made["instance_tokens"], made["class_scores"]
        parts = [unit_rows(found["queries"].numpy()), unit_rows(tokens.numpy())]
        joined = np.concatenate(parts, axis=1)
        if last is None:
            order = np.arange(len(joined))
        else:
            order = hungarian(1 - unit_rows(joined) @ unit_rows(cell.step(last)).T)
        last = joined[order]
        orders.append(order)
        seen = (found["mask_logits"] > 0).sum((1, 2, 3)).numpy()
        logits.append((scores.numpy()[order], seen[order]))
    return orders, logits


def test_a_video_is_what_the_definitions_give(model, bundle, frames):
    backend = WatchedBackend()
    with opened(bundle, backend=backend) as pipeline:
        areas = fetched_of(backend.sessions["propose"], "mask_area")
        embeddings = written_to(backend.sessions["classify"], "text_embeddings")
        pipeline.set_vocabulary(WORDS)
        results = list(pipeline.stream(frames))
        video = pipeline.finish()
    orders, logits = by_hand(model, frames, embeddings[0])
    for result, area, order in zip(results, areas, orders, strict=True):
        # a query's mask is as large as it is, so it is known by its area
        shown = {i.track_id: i.mask.sum() for i in result.instances}
        seen = np.flatnonzero(area[order] > 0)
        assert set(shown) == set(seen.tolist())
        ours = [shown[track] for track in seen]
        np.testing.assert_allclose(ours, 16 * area[order][seen], rtol=0.35, atol=60)
    seen = np.array([area > 0 for _, area in logits])
    merged = np.array(
        [np.stack([s[:, 0], s[:, 1], s[:, 2:].max(1)], 1) for s, _ in logits], np.float64
    )
    mean = (merged * seen[..., None]).sum(0) / np.maximum(seen.sum(0), 1)[:, None]
    probability = np.exp(mean - mean.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    probability[~seen.any(0)] = 0
    best = {(i.track_id, i.category_id): i.score for i in video.instances}
    assert len(best) == 10
    for (track, number), score in best.items():
        category = number - 1
        # logits are 100 cos at the most, and the exported graph's rounding is 1e-6 of that
        assert score == pytest.approx(probability[track, category], abs=1e-3)
    assert [r.index for r in results] == list(range(len(frames)))


def fetched_of(session, output):
    """Collects an output, frame by frame."""
    found = []
    session.changes[output] = lambda value: found.append(value) or value
    return found


def written_to(session, name):
    """Collects what is written into an input."""
    found, write = [], session.write

    def kept(written, value, slot=0) -> None:
        if written == name:
            found.append(value)
        write(written, value, slot)

    session.write = kept
    return found


def test_streaming_and_stepping_agree(bundle, frames):
    with opened(bundle, mode="stream") as one, opened(bundle, mode="stream") as other:
        streamed = list(one.stream(frames))
        stepped = [other.step(frame) for frame in frames]
    assert [r.instances for r in streamed] == [r.instances for r in stepped]


def test_a_damaged_or_foreign_recurrence_is_refused(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    weights = load_file(copy / TRACKER)
    save_file({k: v[:-3] for k, v in weights.items()}, copy / TRACKER)
    with pytest.raises(BundleError, match=r"was changed|bytes"):
        opened(copy)
    manifest = Bundle.open(copy, verify=False).manifest
    write_manifest(copy, manifest, manifest.files)
    with pytest.raises(BundleError, match="rollout"):
        opened(copy)


def test_without_a_recurrence_tokens_are_matched_as_they_are(model, bundle, frames, tmp_path):
    """A file that stands there and is not listed is no part of the bundle."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    manifest = bundle.manifest
    write_manifest(copy, manifest, set(manifest.files) - {TRACKER})
    as_they_are = tmp_path / "momentum"
    shutil.copytree(bundle.path, as_they_are)
    tracker = replace(manifest.tracker, name="momentum", parameters={"alpha": 1.0})
    write_manifest(as_they_are, replace(manifest, tracker=tracker), manifest.files)
    found = []
    for path in (copy, as_they_are, bundle.path):
        with opened(path) as pipeline:
            found.append(list(pipeline.stream(frames)))
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("given", [{"frames": 3}, {"top_k": 3}])
def test_the_top_k_options_are_not_this_trackers(bundle, given):
    with pytest.raises(InputError, match=f"rollout has no {next(iter(given))}; it has no param"):
        opened(bundle, tracking=TrackingOptions(**given))


def test_a_bundle_with_another_tracker_is_refused(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    manifest = bundle.manifest
    tracker = replace(manifest.tracker, name="of-the-future")
    write_manifest(copy, replace(manifest, tracker=tracker), manifest.files)
    with pytest.raises(BundleError, match="of-the-future"):
        opened(copy)


def test_tokens_before_the_projection_export_and_run_too(frames, tmp_path):
    guidance = Guidance(projected=False, sees_register=True, to_grid="max", first_block=1)
    config = InstFormerConfig(guidance, queries=10, decoder_layers=1)
    made = export_bundle(
        tiny_instformer(config),
        tmp_path / "bundle",
        network_size=NETWORK,
        precisions=("fp32",),
        checkpoint={},
    )
    outputs = {t.name: t.shape for t in made.bundle.graph("classify").spec.outputs}
    assert outputs["instance_tokens"] == (10, 64)
    assert TRACKER not in made.bundle.manifest.files
    with opened(made.bundle) as pipeline:
        assert len(list(pipeline.stream(frames))) == len(frames)
