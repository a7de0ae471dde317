"""All recipes, a few iterations each, from nothing to files that load: nothing is learned here."""

from __future__ import annotations

import os
import signal

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [export]")
pytest.importorskip("matplotlib", reason="a run's curves need the extra [eval]")

from openvis_rt.checkpoints.load import load_model  # noqa: E402 - after the skip
from openvis_rt.errors import InputError  # noqa: E402
from openvis_rt.training import instformer  # noqa: E402
from openvis_rt.training.clip import LONGEST, new_clip, train_clip  # noqa: E402
from openvis_rt.training.clip_vis import train_clip_vis  # noqa: E402
from openvis_rt.training.instance_tokens import token_accuracy, train_tokens  # noqa: E402
from openvis_rt.training.instformer import (  # noqa: E402
    train_proposals,
    with_proposals,
    with_tokens,
)
from openvis_rt.training.miniatures import pack  # noqa: E402
from openvis_rt.training.ovformer import train_ovformer, trained_ovformer  # noqa: E402
from openvis_rt.training.rollout import train_rollout  # noqa: E402
from openvis_rt.training.run import trained_weights  # noqa: E402
from openvis_rt.training.segmentation import best_overlaps, deep_losses  # noqa: E402
from openvis_rt.training.world import World  # noqa: E402

CLIP = {"iterations": 2, "batch": 4, "count": 8, "rate": 1e-3, "seed": 0}
FEW = {"iterations": 2, "batch": 2, "rate": 5e-4, "seed": 0}
PROPOSALS = {**FEW, "contrast": 0.1}
FRAMES = torch.from_numpy(World("validation", frames=2)[3].images)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of all runs, as the documentation makes it; and what the recipes returned."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"resnet": train_clip("resnet", folder / "clip-resnet", **CLIP)}
    made["vit"] = train_clip("vit", folder / "clip-vit", **CLIP, teacher=folder / "clip-resnet")
    made["clip-vis"] = train_clip_vis(folder / "clip-vis", folder / "clip-resnet", **FEW)
    made["proposals"] = train_proposals(folder / "proposals", **PROPOSALS)
    begun = with_proposals(folder / "proposals", folder / "clip-vit")
    train_tokens(folder / "tokens", begun, **FEW)
    made["instformer"] = with_tokens(*(folder / n for n in ("proposals", "clip-vit", "tokens")))
    made["tracker"] = train_rollout(
        folder / "tracker", made["instformer"], iterations=2, videos=2, frames=2, seed=0
    )
    made["ovformer"] = train_ovformer(
        *(folder / name for name in ("ovformer", "proposals", "clip-vit")),
        iterations=2,
        windows=2,
        frames=2,
        rate=5e-4,
        seed=0,
    )
    return folder, made


def same(found, wanted, *, but: str = "num_batches_tracked") -> None:
    """Weights of a packed file are the trained ones in FP16; of text only what captions reach."""
    for key, value in wanted.items():
        if not key.endswith((but, "token_embedding.weight")):
            kept = value.clone()
            if key.endswith("positional_embedding") and len(value) == 77:
                kept[LONGEST:] = 0
            torch.testing.assert_close(found[key], kept.half().float(), msg=key)


def test_packed_runs_load_as_the_miniatures_that_were_trained(runs):
    folder, made = runs
    files = pack(folder, folder / "packed")
    assert [f.name for f in files] == [
        "clip-vis-mini.safetensors",
        "instformer-mini.safetensors",
        "ovformer-mini.safetensors",
    ]
    clip_vis_file, instformer_file, ovformer_file = files
    assert max(f.stat().st_size for f in files) < 8 * 2**20
    model = load_model("clip-vis-mini", clip_vis_file).model
    same(model.state_dict(), made["clip-vis"].state_dict())
    model = load_model("ovformer-mini", ovformer_file, str(instformer_file)).model
    same(model.network.state_dict(), made["ovformer"].network.state_dict())
    same(model.clip_model.state_dict(), made["vit"].state_dict())
    again = trained_ovformer(folder / "ovformer", folder / "clip-vit")
    same(model.network.state_dict(), again.network.state_dict())
    model = load_model("instformer-mini", instformer_file).model
    same(model.proposal.state_dict(), made["proposals"].state_dict())
    assert set(model.recurrence) == set(made["tracker"])
    same(model.recurrence, made["tracker"])
    # what the tokens and the adapter do is the same, but for FP16
    guidance = torch.zeros(2, 112)
    texts = torch.nn.functional.normalize(torch.randn(5, 128), dim=-1)
    with torch.inference_mode():
        found, wanted = (
            m.classify(FRAMES[:1], guidance, texts)["instance_tokens"]
            for m in (model, made["instformer"])
        )
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.9999


def test_what_is_frozen_stays_and_what_is_trained_moves(runs):
    folder, made = runs
    clip = trained_weights(folder / "clip-resnet")
    for key, value in made["clip-vis"].clip_model.state_dict().items():
        assert torch.equal(value, clip[key]), key
    assert not any(key.startswith("backbone") for key in trained_weights(folder / "clip-vis"))
    teacher, clip = clip, trained_weights(folder / "clip-vit")
    taught = {key for key in clip if not key.startswith("visual.")}
    assert all(torch.equal(clip[key], teacher[key]) for key in taught)  # the temperature as well
    beginning = new_clip("vit", 0).state_dict()
    assert all((clip[key] != beginning[key]).any() for key in clip.keys() - taught)
    for key, value in made["ovformer"].clip_model.state_dict().items():
        assert torch.equal(value, clip[key]), key
    begin = trained_weights(folder / "proposals")
    moved = trained_weights(folder / "ovformer")
    backbone = [k for k in moved if k.startswith("backbone.") and k.endswith("conv1.weight")]
    assert backbone
    for key in backbone:  # it begins with the proposals' and learns
        assert 0 < (moved[key] - begin[key]).abs().max() < 0.01, key
    tokens = trained_weights(folder / "tokens")
    assert all(tokens[key].abs().max() > 0 for key in tokens)
    token = clip["visual.class_embedding"]
    for name in ("register", "instance"):
        assert 0 < (tokens[f"tokens.{name}"] - token).abs().max() < 0.1


def test_a_recipe_that_is_interrupted_ends_with_the_same_weights(runs, tmp_path, monkeypatch):
    """With live norms, whose statistics move before the weights do."""
    folder, _ = runs

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return deep_losses(*arguments)

    with monkeypatch.context() as changed:
        changed.setattr(instformer, "deep_losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_proposals(tmp_path, **PROPOSALS)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iteration"] == 1
    train_proposals(tmp_path, **PROPOSALS)
    wanted, found = trained_weights(folder / "proposals"), trained_weights(tmp_path)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_a_teacher_of_another_kind_is_refused(runs, tmp_path):
    folder, _ = runs
    few = {**CLIP, "teacher": folder / "clip-vit"}
    with pytest.raises(InputError, match="clip-vit is no run of a resnet"):
        train_clip("vit", tmp_path / "run", **few)


def test_measures_of_untrained_miniatures_are_percentages(runs):
    _, made = runs
    model, world = made["instformer"], World("validation", frames=1)
    accuracy = token_accuracy(model, world, 2)
    assert set(accuracy) == {"base", "novel"}
    overlaps = {
        **best_overlaps(made["clip-vis"].propose, world, 2),
        **best_overlaps(made["ovformer"].propose, World("validation", frames=2), 2),
    }
    assert all(0 <= value <= 100 for value in (*accuracy.values(), *overlaps.values()))
