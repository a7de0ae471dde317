"""InstFormer through export, bundle and pipeline, in small."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import TRACKER, Bundle, write_manifest
from openvis_rt.errors import BundleError, InputError
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.tracking.association import Momentum
from openvis_rt.runtime.video.generated import sample_frames

pytest.importorskip("torch", reason="exporting needs the extra [export]")

import torch
from tiny import NETWORK
from tiny_instformer import EMBED, tiny_instformer

from openvis_rt.export.bundle import export_bundle
from openvis_rt.runtime.tracking.association import hungarian, unit_rows
from openvis_rt.runtime.tracking.rollout import cell_from_weights
from openvis_rt.systems.instformer import Guidance, InstFormerConfig

WORDS = ("cat", "dog", "monkey, ape")
EVERYTHING = Selection(threshold=0.0, limit=20)


@pytest.fixture(scope="module")
def model():
    made = tiny_instformer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = torch.nn.RNN(256 + EMBED, 256 + EMBED)
    made.tracker = {name: value.detach() for name, value in cell.state_dict().items()}
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
    assert manifest.family == "instformer"
    assert manifest.tracker.name == "rollout"
    assert TRACKER in manifest.files
    inputs = [t.name for t in bundle.graph("classify").spec.inputs]
    assert inputs == ["frames", "guidance_mask", "text_embeddings"]
    shapes = {t.name: t.shape for t in bundle.graph("propose").spec.outputs}
    assert shapes["guidance_mask"] == (10, 2 * 3)  # 64x96 in patches of 32


def by_hand(model, frames, embeddings):
    """The video in PyTorch and plain numpy, stage by stage, from the definitions."""
    cell = cell_from_weights({k: v.numpy() for k, v in model.tracker.items()})
    last, logits, orders = None, [], []
    for frame in frames:
        with torch.inference_mode():
            x = torch.from_numpy(frame)[None]
            found = model.propose(x)
            tokens, scores = model.classify(x, found.guidance, torch.from_numpy(embeddings))
        parts = [unit_rows(found.queries.numpy()), unit_rows(tokens.numpy())]
        joined = np.concatenate(parts, axis=1)
        if last is None:
            order = np.arange(len(joined))
        else:
            order = hungarian(1 - unit_rows(joined) @ unit_rows(cell.step(last)).T)
        last = joined[order]
        orders.append(order)
        logits.append((scores.numpy()[order], (found.mask_logits > 0).sum((1, 2)).numpy()[order]))
    return orders, logits


def test_a_video_is_what_the_definitions_give(model, bundle, frames):
    with opened(bundle) as pipeline:
        family = pipeline._inner._family
        found = []
        match = family.match
        family.match = lambda output: found.append(match(output)) or found[-1]
        results = list(pipeline.stream(frames))
        embeddings = pipeline._inner._classifier.embeddings
        video = pipeline.finish()
    orders, logits = by_hand(model, frames, embeddings)
    for ours, theirs in zip(found, orders, strict=True):
        np.testing.assert_array_equal(ours, theirs)
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
    for (track, category), score in best.items():
        # logits are 100 cos at the most, and the exported graph's rounding is 1e-6 of that
        assert score == pytest.approx(probability[track, category], abs=1e-3)
    assert [r.index for r in results] == list(range(len(frames)))


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
    write_manifest(copy, Bundle.open(copy, verify=False).manifest)
    with pytest.raises(BundleError, match="rollout"):
        opened(copy)
    (copy / TRACKER).unlink()
    write_manifest(copy, Bundle.open(copy, verify=False).manifest)
    with opened(copy) as pipeline:  # without it tokens are matched as they are
        assert isinstance(pipeline._inner._family._tracker, Momentum)


def test_the_top_k_options_are_not_this_trackers(bundle):
    with pytest.raises(InputError, match="no T and no K"):
        opened(bundle, tracker_frames=3)


def test_a_bundle_with_another_tracker_is_refused(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    manifest = json.loads((copy / "bundle.json").read_text())
    opened_manifest = Bundle.open(copy).manifest
    object.__setattr__(opened_manifest.tracker, "name", "of-the-future")
    write_manifest(copy, opened_manifest)
    assert manifest["tracker"]["name"] == "rollout"
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
