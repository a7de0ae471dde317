"""``benchmarks/miniatures.py``: settings change what they say and nothing else; known figures."""

from __future__ import annotations

import miniature_claims
import numpy as np
import pytest
import torch
from miniature_claims import BY_CONTRAST, CLAIMS, CROPS, Claim, changed, guided, settings_of
from miniature_runs import (
    GROUPS,
    MEASURES,
    ONE_CLASS,
    Fp16Emulation,
    Remembered,
    Shared,
    data_set,
    measured,
    played,
    remembering,
)
from miniature_tables import (
    TORCH,
    accuracy_rows,
    accuracy_table,
    check_gate,
    claim_rows,
    claims_table,
    spread,
    verdict,
)
from miniatures import Results
from tiny import tiny_model

from openvis_rt.bundle.bundle import Bundle, Manifest, Preprocess
from openvis_rt.checkpoints.instformer import InstFormerParts, write_parts
from openvis_rt.checkpoints.load import load_model
from openvis_rt.compare.differences import sqnr
from openvis_rt.errors import CheckpointError, ParityError
from openvis_rt.evaluation.sources import annotated_frames
from openvis_rt.models.instformer import default_config
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.tracking.scoring import object_probability
from openvis_rt.runtime.video.results import VideoInstance, VideoResult
from openvis_rt.runtime.video.run_lengths import empty_rle
from openvis_rt.systems import SYSTEMS, VARIANTS
from openvis_rt.systems.graphs import masks_per_run
from openvis_rt.training.segmentation import live_norms
from openvis_rt.verify.torch_backend import TorchBackend


def silent(*_):
    pass


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("world"), "test", 0, 2, silent)


@pytest.fixture(scope="module")
def instformer():
    return load_model("instformer-mini", 0).model


def bundle_of(name, folder):
    """A bundle without graphs."""
    variant = VARIANTS[name]
    system = SYSTEMS[variant.system]
    manifest = Manifest(
        system=variant.system,
        variant=name,
        graphs={},
        preprocess=Preprocess((128, 224), None, 128, 1333, 32, variant.pixel_mean),
        tracker=system.tracker,
        score=system.score,
        window_length=variant.window_length,
        detections=variant.detections,
        prompts=variant.prompts,
        text_sha256="",
        checkpoint={},
        tools={},
    )
    return Bundle(folder / "bundle", manifest)


# settings


@pytest.mark.parametrize("name", ["clip-vis-mini", "instformer-mini", "ovformer-mini"])
def test_every_setting_that_a_claim_names_is_made(name, tmp_path, monkeypatch):
    monkeypatch.setattr(miniature_claims, "exported", lambda *_: bundle_of(name, tmp_path))
    monkeypatch.setattr(miniature_claims, "without_training", guided)
    model = load_model(name, 0).model
    made = settings_of(model, bundle_of(name, tmp_path)).settings
    named = {s for c in CLAIMS if c.model == name for s in (c.best, *c.others)}
    assert named - set(BY_CONTRAST) == made.keys()


def test_what_is_asked_of_the_classifier_is_tracked_by_queries(instformer, tmp_path, monkeypatch):
    bundle = bundle_of("instformer-mini", tmp_path)
    monkeypatch.setattr(miniature_claims, "exported", lambda *_: bundle)
    monkeypatch.setattr(miniature_claims, "without_training", guided)
    made = settings_of(instformer, bundle).settings
    trackers = {name: setting.bundle.manifest.tracker for name, setting in made.items()}
    assert trackers["as released"].name == "rollout"
    both = trackers.pop("queries and instance tokens")
    assert (both.name, both.tokens) == ("momentum", ("queries", "instance_tokens"))
    assert both.normalise_parts
    del trackers["as released"]
    assert {(t.name, t.tokens) for t in trackers.values()} == {("momentum", ("queries",))}
    rules = {name: made[name].model.config.guidance for name in made if name != CROPS}
    assert rules["binary guidance"].values == "binary"
    assert rules["no guidance"].scale == 0
    assert rules["register seen"].sees_register
    assert rules["plain CLIP, logit guidance"] == rules["as released"]


def test_other_guidance_has_the_same_proposals_and_tokens(instformer):
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8))
    model = guided(instformer)
    model.instance_clip.set_tokens(torch.full((128,), 0.5), None)
    none = guided(model, scale=0.0)
    assert torch.equal(none.instance_clip.register_token, torch.full((128,), 0.5))
    with torch.inference_mode():
        found, unguided = model.propose(frames), none.propose(frames)
        binary = guided(model, values="binary").propose(frames)
    assert torch.equal(found["mask_logits"], unguided["mask_logits"])
    assert not unguided["guidance_mask"].any()
    assert found["guidance_mask"].any()
    assert set(binary["guidance_mask"].unique().tolist()) <= {0.0, -100.0}


def test_factors_of_the_score_are_left_out(tmp_path):
    model = tiny_model()
    made = settings_of(model, bundle_of("clip-vis-mini", tmp_path)).settings
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8))
    with torch.inference_mode():
        found = model.propose(frames)
        no_iou, no_object, neither = (
            made[f"without {name}"].model.propose(frames) for name in ("S_iou", "S_obj", "both")
        )
    assert 0 < found["mask_iou"].min() < found["mask_iou"].max() < 1
    for certain in (no_iou, neither):
        assert (certain["mask_iou"] == 1).all()
    for certain in (no_object, neither):
        assert (object_probability(certain["object_logits"].numpy()) == 1).all()
    assert torch.equal(no_iou["object_logits"], found["object_logits"])
    assert torch.equal(neither["queries"], found["queries"])


@pytest.mark.parametrize("form", ["checkpoint", "run"])
def test_proposals_come_from_a_checkpoint_and_from_a_run(form, instformer, tmp_path):
    other = load_model("instformer-mini", 1).model
    if form == "run":
        path = tmp_path / "last.pt"
        live_norms(other.proposal)
        torch.save({"model": other.proposal.state_dict(), "optimizer": {}, "iteration": 3}, path)
    else:
        path = tmp_path / "other.safetensors"
        config = default_config(other.variant)
        clip = {"logit_scale": torch.zeros(())}
        write_parts(InstFormerParts(config, other.proposal.state_dict(), clip), path)
    found = miniature_claims.proposals_from(path).state_dict()
    wanted = other.proposal.state_dict()
    assert found.keys() <= wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())
    key = "sem_seg_head.predictor.query_feat.weight"
    assert not torch.equal(found[key], instformer.proposal.state_dict()[key])


def test_proposals_of_another_network_are_refused(tmp_path):
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "tiny.pt")
    with pytest.raises(CheckpointError, match="does not fit instformer-mini's proposals"):
        miniature_claims.proposals_from(tmp_path / "tiny.pt")


# running


def test_a_value_is_computed_once_until_it_is_forgotten():
    calls = []
    function = Remembered(lambda x: calls.append(x) or x + len(calls))
    a, b = torch.zeros(2), torch.zeros(1, 2)
    assert function(a) is function(a.clone())
    assert function(b) is not function(a)
    assert len(calls) == 2
    function.forget()
    assert function(a).tolist() == [3, 3]


def test_shared_methods_are_as_they_were_after_an_error():
    model = tiny_model()
    with pytest.raises(AttributeError), remembering([Shared(model, "propose")]):
        model.propose(None)
    assert model.propose.__func__ is type(model).propose


def test_settings_that_share_a_network_give_what_each_gives_alone(opened_bundle, videos):
    model = tiny_model()
    lying = changed(model, {"mask_iou": lambda iou: 1 - iou})
    with annotated_frames(videos.annotations.videos[0], videos.videos) as source:
        frames = list(source)[:5]
    pipelines = [
        Pipeline.open(opened_bundle, vocabulary=["ring", "star"], backend=TorchBackend(network))
        for network in (model, lying)
    ]
    alone = [played(pipeline, frames) for pipeline in pipelines]
    calls = []
    model.sem_seg_head.pixel_decoder.register_forward_hook(lambda *_: calls.append(1))
    with remembering([Shared(model, "propose")]):
        together = [played(pipeline, frames) for pipeline in pipelines]
    for pipeline in pipelines:
        pipeline.close()
    assert len(calls) == len(frames)
    assert together == alone
    assert alone[0] != alone[1]


class Truth:
    """A pipeline that knows the annotations; a part of them under the name of another class."""

    def __init__(self, data, wrong=()):
        self._annotations, self._wrong = data.annotations, set(wrong)
        self._videos = iter(data.annotations.videos)

    def stream(self, frames):
        self._count = len(frames)
        return iter(())

    def finish(self):
        video = next(self._videos)
        assert self._count == len(video.frames)
        tracks = [t for t in self._annotations.tracks if t.video_id == video.id]
        empty = empty_rle(video.height, video.width)
        return VideoResult(
            video.height,
            video.width,
            self._count,
            tuple(
                VideoInstance(
                    n, self._named(t), "", 0.9, tuple(s or empty for s in t.segmentations)
                )
                for n, t in enumerate(tracks)
            ),
        )

    def _named(self, track):
        return (
            track.category_id % 357 + 1 if track.category_id in self._wrong else track.category_id
        )


def test_figures_of_what_is_known(videos):
    shown = {track.category_id for track in videos.annotations.tracks}
    novel = shown & videos.groups["novel"]
    assert novel
    assert shown & videos.groups["base"]
    told = []
    pipelines = {"right": Truth(videos), "novel wrong": Truth(videos, novel)}
    found = measured(pipelines, videos, silent, lambda: told.append(1))
    assert len(told) == 2
    for group in (*GROUPS, ONE_CLASS):
        assert found["right"][group] == pytest.approx(dict.fromkeys(MEASURES, 100.0))
    wrong = found["novel wrong"]
    assert wrong["base"]["AP"] == pytest.approx(100)
    assert wrong["novel"]["AP"] == pytest.approx(0)
    assert wrong[ONE_CLASS]["AP"] == pytest.approx(100)
    share = 100 * (1 - len(novel) / len(shown))
    assert wrong["all"]["AP"] == pytest.approx(share)


def test_half_precision_is_rounded(opened_bundle):
    rng = np.random.default_rng(0)
    found = {}
    for name, backend, precision in (
        ("fp32", OnnxRuntime("cpu"), "fp32"),
        ("dropped", OnnxRuntime("cpu"), "fp16"),
        ("emulated", Fp16Emulation("cpu"), "fp16"),
    ):
        session = backend.open(opened_bundle, "text", precision)
        tokens = np.zeros((2, 77), np.int64)
        tokens[:, :4] = [[49406, 320, 2368, 49407], [49406, 320, 1929, 49407]]
        session.write("tokens", tokens)
        session.run()
        found[name] = session.fetch("embeddings")
        masks = backend.open(opened_bundle, "masks", precision)
        shape = masks.spec.inputs[0].shape
        masks.write("mask_logits", rng.standard_normal(shape).astype(np.float32))
        masks.write("selected", np.arange(masks_per_run(1)))
        masks.run()
        assert masks.fetch("masks").any()
    assert 30 < sqnr(found["emulated"], found["fp32"]) < 100
    assert not np.array_equal(found["emulated"], found["dropped"])


# results and tables


def test_a_result_is_found_by_the_whole_of_its_key(tmp_path):
    path = tmp_path / "folder" / "results.jsonl"
    Results(path).add({"setting": "a", "seed": 0}, {"all": {"AP": 1.5}})
    Results(path).add({"setting": "a", "seed": 1}, {"all": {"AP": None}})
    results = Results(path)
    assert results.find({"setting": "a", "seed": 0}) == {"all": {"AP": 1.5}}
    assert results.find({"setting": "a", "seed": 1}) == {"all": {"AP": None}}
    assert results.find({"setting": "a"}) is None
    assert results.find({"setting": "a", "seed": 0, "videos": 2}) is None


def figures(ap, one=None):
    of = {group: dict.fromkeys(MEASURES, ap) for group in GROUPS}
    return {**of, ONE_CLASS: dict.fromkeys(MEASURES, ap if one is None else one)}


def test_an_accuracy_that_is_too_far_fails():
    near = accuracy_rows("m", {TORCH: figures(50.0), "other": figures(50.4)})
    check_gate(near)
    assert accuracy_table(near)[-1].split("|")[-3:-1] == [" +0.40 ", " 0.40 "]
    for ap in (49.4, 50.6):
        with pytest.raises(ParityError, match="m on other, novel"):
            check_gate(accuracy_rows("m", {TORCH: figures(50.0), "other": figures(ap)}))


def test_a_claim_reproduces_in_every_world_on_average_or_not():
    assert verdict([1.0, 0.5]) == "yes"
    assert verdict([1.0, -0.5]) == "on average"
    assert verdict([1.0, 0.0]) == "on average"
    assert verdict([-1.0, 0.5]) == "no"
    assert verdict([0.0, 0.0]) == "no difference"
    assert verdict([None, 0.5]) == "not measured"
    assert spread([1.0, 4.0]) == {"mean": 2.5, "least": 1.0, "most": 4.0, "seeds": 2}


def test_a_claim_is_compared_world_by_world():
    claim = Claim("A is better.", "paper, table 1", "m", "a", {"b": "2 : 1", "c": ""})
    known = {"a": [figures(30.0), figures(10.0)], "b": [figures(28.0), figures(9.0)]}
    first, second = claim_rows(claim, known)  # nothing is known of c
    assert "advantage" not in first
    assert second["advantage"] == {"mean": 1.5, "least": 1.0, "most": 2.0, "seeds": 2}
    assert second["reproduces"] == "yes"
    text = "\n".join(claims_table([first, second]))
    assert "| b | 18.5 (9.0 to 28.0) |" in text
    assert "| +1.5 (+1.0 to +2.0) | 2 : 1 | yes |" in text
    assert claim_rows(claim, {"a": known["a"]}) == []


def test_a_claim_of_one_class_is_compared_there():
    claim = Claim("A is better.", "paper", "m", "a", {"b": ""}, ONE_CLASS)
    known = {"a": [figures(30.0, one=5.0)], "b": [figures(20.0, one=6.0)]}
    _, row = claim_rows(claim, known)
    assert row["reproduces"] == "no"
    assert row["advantage"]["mean"] == pytest.approx(-1)
