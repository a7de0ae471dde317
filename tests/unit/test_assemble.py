"""`openvis assemble`: parts as people have them, to one checkpoint that loads; and bad parts."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints are read by the extra [export]")

import open_clip  # noqa: E402 - after the skip
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_instformer import (  # noqa: E402
    BLOCKS,
    CONFIG,
    EMBED,
    PATCH,
    WIDTH,
    tiny_clip,
    tiny_instformer,
    tiny_proposal,
)

from openvis_rt.checkpoints.instformer import (  # noqa: E402
    InstFormerParts,
    write_parts,
)
from openvis_rt.checkpoints.load import Checkpoint, load_model  # noqa: E402
from openvis_rt.checkpoints.lora import adapter_from_peft, merge_adapter  # noqa: E402
from openvis_rt.cli.main import main  # noqa: E402
from openvis_rt.errors import CheckpointError  # noqa: E402
from openvis_rt.models import instformer, minvis_clip  # noqa: E402
from openvis_rt.models.minvis_clip import MinVisClip  # noqa: E402

NAME = "instformer-r50"
TOKEN = 256 + EMBED  # width of a tracking token
RANK, ALPHA = 4, 16.0
HF = "base_model.model.vision_model.encoder.layers.{}.self_attn.{}_proj.lora_{}.weight"
OPEN_CLIP = "base_model.model.visual.transformer.resblocks.{}.attn.{}_proj.lora_{}.weight"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(instformer, "build", lambda _, config=None: tiny_instformer(config))
    monkeypatch.setattr(
        minvis_clip, "build", lambda _, config: MinVisClip.from_instformer(tiny_instformer(config))
    )


@pytest.fixture(scope="module")
def weights() -> tuple[dict, dict]:
    """Of the proposal network and of CLIP, other than the builder's."""
    return tiny_proposal(seed=1).state_dict(), tiny_clip(seed=1).state_dict()


@pytest.fixture
def parts(tmp_path, weights) -> dict[str, Path]:
    """The two files without which nothing can be assembled."""
    proposal, clip = tmp_path / "mask2former.pth", tmp_path / "clip.pt"
    torch.save({"model": dict(weights[0]), "iteration": 3}, proposal)
    torch.save(dict(weights[1]), clip)
    return {"proposal": proposal, "clip": clip}


@pytest.fixture
def assemble(parts, tmp_path, openvis):
    """Runs the command on the parts: exit code, stdout, stderr. What is written: `.path`."""

    def run(*options: object, **files: object) -> tuple[int, str, str]:
        named = [x for part, path in {**parts, **files}.items() for x in (f"--{part}", path)]
        words = ["assemble", "instformer", *named, "-o", run.path, *options]
        code, out, err = openvis(*words)
        assert not list(tmp_path.glob(".partial*"))
        return code, out, " ".join(err.replace("│", " ").split())

    run.path = tmp_path / "new.safetensors"
    return run


def lora(form: str = HF, *, blocks=range(BLOCKS), targets="qv", rank=RANK, width=WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"A": (rank, width), "B": (width, rank)}
    return {
        form.format(block, target, name): torch.randn(shape, generator=generator) * 0.1
        for block in blocks
        for target in targets
        for name, shape in shapes.items()
    }


def peft(folder: Path, state: dict, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors")
    config = {"lora_alpha": ALPHA, "r": RANK, "target_modules": ["q_proj", "v_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_model.safetensors"


def rnn(folder: Path, width: int = TOKEN, kind=torch.nn.RNN) -> Path:
    path = folder / "rollout.safetensors"
    save_file(kind(width, width).state_dict(), path)
    return path


def loaded(path: Path):
    return load_model(NAME, path).model


# what is assembled


def test_two_parts_make_a_model(assemble, weights):
    code, out, err = assemble()
    assert (code, out) == (0, "")
    assert "wrote" in err
    model = loaded(assemble.path)
    assert not model.training
    for module, state in zip((model.proposal, model.clip_model), weights, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    token = weights[1]["visual.class_embedding"]
    assert torch.equal(model.instance_clip.instance_token, token)
    assert torch.equal(model.instance_clip.register_token, token)
    assert model.instance_clip.log_scale is model.clip_model.logit_scale
    assert model.recurrence == {}
    assert model.config == CONFIG  # its sizes were read from the weights


def test_all_parts_and_options_come_back(assemble, tmp_path):
    tokens = {"register": torch.randn(1, 1, WIDTH), "instance": torch.randn(WIDTH)}
    save_file({f"tokens.{k}": v for k, v in tokens.items()}, tmp_path / "tokens.safetensors")
    code, out, _ = assemble(
        *("--guidance-scale", 0.5, "--clamp", 9, "--to-grid", "max", "--values", "binary"),
        *("--sees-register", "--no-projected", "--video-score", "mean-logits-objectness"),
        *("--no-normalise-parts", "--no-quick-gelu", "--json"),
        adapter=peft(tmp_path / "lora", lora()),
        tracker=rnn(tmp_path, 256 + WIDTH, torch.nn.GRU),
        tokens=tmp_path / "tokens.safetensors",
    )
    assert code == 0
    facts = json.loads(out)
    assert facts["checkpoint"] == str(assemble.path)
    assert facts["bytes"] == assemble.path.stat().st_size
    assert facts["adapter"] == "rank 4, alpha 16, blocks 0, 1, 2"
    assert facts["tracker"] == f"gru of width {256 + WIDTH}"
    assert facts["tokens"] == {"instance": "trained", "register": "trained"}
    assert facts["sources"].keys() == {"proposal", "clip", "adapter", "tracker", "tokens"}
    assert len(facts["sources"]["clip"]["sha256"]) == 64
    model = loaded(assemble.path)
    rule = model.config.guidance
    assert (rule.scale, rule.clamp, rule.to_grid, rule.values) == (0.5, 9, "max", "binary")
    assert (rule.sees_register, rule.projected, rule.first_block) == (True, False, 0)
    assert model.config.video_score == "mean-logits-objectness"
    assert (model.config.normalise_parts, model.config.quick_gelu) == (False, False)
    assert torch.equal(model.instance_clip.register_token, tokens["register"].flatten())
    assert torch.equal(model.instance_clip.instance_token, tokens["instance"])
    assert torch.equal(
        model.recurrence["bias_hh_l0"], load_file(tmp_path / "rollout.safetensors")["bias_hh_l0"]
    )
    described = Checkpoint.open(assemble.path).describe()
    assert described["system"] == "instformer"
    assert described["model"] == NAME
    assert described["decoder layers"] == 2
    assert {k: facts[k] for k in ("config", "adapter", "tracker", "tokens", "sources")} == {
        k: described[k] for k in ("config", "adapter", "tracker", "tokens", "sources")
    }


def test_inspect_describes_the_file(assemble, capsys, monkeypatch, tmp_path):
    assert assemble(adapter=peft(tmp_path / "lora", lora(), lora_alpha=8))[0] == 0
    monkeypatch.setattr(sys, "argv", ["openvis", "inspect", str(assemble.path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    facts = json.loads(capsys.readouterr().out)
    assert facts["adapter"] == "rank 4, alpha 8, blocks 0, 1, 2"
    assert facts["config"]["guidance"]["to_grid"] == "area"
    assert facts["tracker"].startswith("none")


@pytest.mark.parametrize("classes", [1, 80])
def test_the_number_of_classes_is_read(assemble, tmp_path, classes):
    config = replace(CONFIG, classes=classes, decoder_layers=1, queries=3)
    torch.save({"model": tiny_proposal(config).state_dict()}, tmp_path / "other.pth")
    assert assemble(proposal=tmp_path / "other.pth")[0] == 0
    assert loaded(assemble.path).config == config


def test_old_names_and_what_only_training_needs_are_taken(assemble, tmp_path, weights):
    state = dict(weights[0])
    queries = state.pop("sem_seg_head.predictor.query_feat.weight")
    state["sem_seg_head.predictor.static_query.weight"] = queries
    state["criterion.empty_weight"] = torch.ones(2)
    state["backbone.stem.conv1.norm.num_batches_tracked"] = torch.tensor(5)
    torch.save({"model": state}, tmp_path / "old.pth")
    assert assemble(proposal=tmp_path / "old.pth")[0] == 0
    with safe_open(assemble.path, framework="pt") as file:
        assert not any("criterion" in k or "num_batches" in k for k in file.keys())  # noqa: SIM118
    assert torch.equal(
        loaded(assemble.path).proposal.sem_seg_head.predictor.query_feat.weight, queries
    )


@pytest.mark.parametrize("form", ["training", "half", "openai", "safetensors"])
def test_clip_comes_in_many_forms(assemble, tmp_path, weights, form):
    clip = dict(weights[1])
    path = tmp_path / ("other.safetensors" if form == "safetensors" else "other.bin")
    if form == "training":
        content = {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in clip.items()}}
    elif form == "half":
        content = {k: v.half() for k, v in clip.items()}
    else:
        content = {**clip, "input_resolution": torch.tensor(224), "vocab_size": torch.tensor(9)}
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in clip.items()}, path)
    else:
        torch.save(content, path)
    assert assemble(clip=path)[0] == 0
    found = loaded(assemble.path).clip_model.visual.proj
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, clip["visual.proj"], atol=1e-3 if form == "half" else 0)


def test_a_tag_is_open_clips_download(assemble, parts, monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(parts["clip"]))
    for tag, quick in (("ViT-B-32:openai", True), ("ViT-B-32:laion2b_s34b_b79k", False)):
        code, out, _ = assemble("--json", "--overwrite", clip=tag)
        assert code == 0
        facts = json.loads(out)
        assert facts["config"]["quick_gelu"] is quick
        assert facts["sources"]["clip"]["tag"] == tag

    def no_network(_):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    code, _, err = assemble("--overwrite", clip="ViT-B-32:openai")
    assert code == 3  # the environment lacks a network
    assert "no route to host" in err
    assert "--clip FILE" in err
    for tag, message in (("ViT-B-32:none", "laion2b_s34b_b79k"), ("RN50:openai", "ViT-B-32")):
        code, _, err = assemble("--overwrite", clip=tag)
        assert code == 2
        assert message in err


# the adapter


@pytest.mark.parametrize("form", [HF, OPEN_CLIP], ids=["hugging face", "open_clip"])
@pytest.mark.parametrize("name", ["", ".default"])
@pytest.mark.parametrize("targets", ["qv", "q"])
def test_merged_is_the_same_as_beside(tmp_path, form, name, targets):
    """W' x = W x + alpha / r * B (A x), for q and v and not for k, in the adapted blocks alone."""
    form = form.replace(".weight", f"{name}.weight")
    path = peft(tmp_path / "lora", lora(form, blocks=(0, 2), targets=targets))
    adapter = adapter_from_peft(path)
    assert (adapter.rank, adapter.alpha) == (RANK, ALPHA)
    before, after = tiny_clip().visual, tiny_clip().visual
    merge_adapter(after, adapter, path)
    x = torch.randn(5, WIDTH)
    state = load_file(path)
    for block in range(BLOCKS):
        attention, merged = (v.transformer.resblocks[block].attn for v in (before, after))
        wanted = (x @ attention.in_proj_weight.T).split(WIDTH, dim=1)
        found = (x @ merged.in_proj_weight.T).split(WIDTH, dim=1)
        for index, target in enumerate("qkv"):
            beside = wanted[index]
            if block != 1 and target in targets:
                a, b = (state[form.format(block, target, matrix)] for matrix in "AB")
                beside = beside + ALPHA / RANK * ((x @ a.T) @ b.T)
                assert not torch.allclose(beside, wanted[index], atol=1e-2)
            np.testing.assert_allclose(found[index], beside, atol=1e-5)  # float32 rounding


def test_the_adapter_is_merged_when_the_model_is_built(assemble, tmp_path, weights):
    path = peft(tmp_path / "lora", lora())
    assert assemble(adapter=path)[0] == 0
    key = "visual.transformer.resblocks.1.attn.in_proj_weight"
    stored = load_file(assemble.path)
    assert torch.equal(stored[f"clip.{key}"], weights[1][key])  # the file keeps CLIP as it was
    assert stored["adapter.1.v.B"].shape == (WIDTH, RANK)
    visual = tiny_clip(seed=1).visual
    merge_adapter(visual, adapter_from_peft(path), path)
    assert torch.equal(
        loaded(assemble.path).clip_model.state_dict()[key], visual.state_dict()[key[7:]]
    )


def test_alpha_has_three_sources(tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(lora(), path, metadata={"lora_alpha": "32"})
    assert adapter_from_peft(path).alpha == 32
    assert adapter_from_peft(path, 5.0).alpha == 5
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 32}')
    assert adapter_from_peft(path).alpha == 32
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    with pytest.raises(CheckpointError, match=r"found 16 and 32"):
        adapter_from_peft(path)


def without(state: dict, part: str) -> dict:
    return {k: v for k, v in state.items() if part not in k}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lora() | lora(blocks=[1], rank=8), "same rank, at least 1; found 0 q: 4"),
        (lora(rank=0), "without a number"),
        (lora(blocks=range(4)), "block 3, and the image encoder's are 0..2"),
        (without(lora(), "2.self_attn.v_proj.lora_B"), "only one of the pair A and B for 2.v"),
        (lora(targets="qkv"), "6 other keys: base_model.model.vision_model.encoder.layers.0"),
        (lora(HF.replace("_proj", "_out")), "other keys"),
        (lora(HF.replace("vision_model", "text_model")), "image encoder, and nothing else"),
        (lora(width=48), "48 -> 48 wide, and the image encoder's projections are 64 -> 64"),
        (lora() | lora(OPEN_CLIP), "holds 2 adapters"),
        (
            lora(HF.replace(".weight", ".a.weight")) | lora(HF.replace(".weight", ".b.weight")),
            "(.a)",
        ),
        (lora(OPEN_CLIP) | lora(OPEN_CLIP.replace("visual.", "")), "holds 2 adapters"),
        (lora() | {"lora_magnitude_vector": torch.ones(3)}, "lora_magnitude_vector"),
        ({k: v.flatten() for k, v in lora().items()}, "A is [r, width]"),
        ({k: v.T.contiguous() for k, v in lora().items()}, "0 q is 4 -> 4 wide"),
        ({k: v * torch.nan for k, v in lora().items()}, "NaN"),
    ],
    ids=range(15),
)
def test_a_wrong_adapter_is_refused_by_name(assemble, tmp_path, state, message):
    code, _, err = assemble(adapter=peft(tmp_path / "lora", state))
    assert code == 2
    assert message in err
    assert "adapter_model.safetensors" in err
    assert not assemble.path.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": None}, "no number"),
        ({"lora_alpha": "much"}, "no number"),
        ({"lora_alpha": 0}, "above 0"),
        ({"use_rslora": True}, "alpha / sqrt(r)"),
        ({"use_dora": True}, "magnitude"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ],
    ids=str,
)
def test_a_formula_that_is_not_ours_is_refused(assemble, tmp_path, config, message):
    code, _, err = assemble(adapter=peft(tmp_path / "lora", lora(), **config))
    assert code == 2
    assert message in err


def test_a_missing_alpha_names_its_sources(assemble, tmp_path):
    save_file(lora(), tmp_path / "bare.safetensors")
    code, _, err = assemble(adapter=tmp_path / "bare.safetensors")
    assert code == 2
    assert "--lora-alpha" in err
    assert assemble("--lora-alpha", 8, adapter=tmp_path / "bare.safetensors")[0] == 0
    (tmp_path / "adapter_config.json").write_text("{")
    code, _, err = assemble("--overwrite", adapter=tmp_path / "bare.safetensors")
    assert code == 2
    assert "adapter_config.json is no JSON" in err


# the tracker and the tokens


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.nn.RNN(768, 768).state_dict(), f"width 768, and the model's are {TOKEN} wide"),
        (torch.nn.RNN(TOKEN, TOKEN, num_layers=2).state_dict(), "weight_ih_l1"),
        (torch.nn.RNN(TOKEN, 16).state_dict(), "rollout"),
        ({"weight": torch.zeros(3)}, "found weight [3]"),
        ({"weight_ih_l0": torch.zeros(TOKEN, TOKEN)}, "bias_hh_l0 [3d]"),
        ({k: v * torch.inf for k, v in torch.nn.GRU(TOKEN, TOKEN).state_dict().items()}, "NaN or"),
    ],
    ids=["width", "layers", "hidden", "vector", "alone", "infinite"],
)
def test_a_wrong_tracker_is_refused(assemble, tmp_path, state, message):
    save_file(state, tmp_path / "rollout.safetensors")
    code, _, err = assemble(tracker=tmp_path / "rollout.safetensors")
    assert code == 2
    assert message in err
    assert "rollout.safetensors" in err


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({"class": torch.zeros(WIDTH)}, (), "`register` and `instance`"),
        ({"register": torch.zeros(WIDTH + 1)}, (), f"[{WIDTH + 1}], and the image encoder needs"),
        ({"register": torch.zeros(2, WIDTH)}, (), f"[2, {WIDTH}]"),
        ({"instance": torch.full((WIDTH,), torch.nan)}, (), "NaN"),
        ({"instance": torch.zeros(WIDTH)}, ("--first-block", 1), "copies of the register"),
    ],
    ids=["name", "width", "many", "nan", "unused"],
)
def test_wrong_tokens_are_refused(assemble, tmp_path, state, options, message):
    save_file(state, tmp_path / "tokens.safetensors")
    code, _, err = assemble(*options, tokens=tmp_path / "tokens.safetensors")
    assert code == 2
    assert message in err
    assert "tokens.safetensors" in err


# the other parts, and the place


def test_parts_of_other_models_are_called_by_their_names(assemble, parts, tmp_path):
    for part, path, messages in (
        ("proposal", parts["clip"], ("CLIP alone", "Mask2Former or MinVIS")),
        ("clip", parts["proposal"], ("mask2former", "open_clip's names")),
    ):
        code, _, err = assemble(**{part: path})
        assert code == 2
        assert all(message in err for message in messages)
        assert str(path) in err
    names = {"vision_model.embeddings.weight": torch.ones(1), "text_model.a": torch.ones(1)}
    torch.save(names, tmp_path / "hf.bin")
    code, _, err = assemble(clip=tmp_path / "hf.bin")
    assert code == 2
    assert "a model under Hugging Face's names that is not a whole CLIP" in err


def test_a_part_that_does_not_fit_lists_its_keys(assemble, tmp_path, weights):
    clip = dict(weights[1])
    clip["visual.odd"] = clip.pop("visual.proj")
    torch.save(clip, tmp_path / "odd.pt")
    code, _, err = assemble(clip=tmp_path / "odd.pt")
    assert code == 2
    assert "1 missing: visual.proj" in err
    assert "1 unexpected: visual.odd" in err
    assert "odd.pt does not fit instformer-r50 as the CLIP" in err


def test_a_torchscript_archive_is_refused_with_its_conversion(assemble, tmp_path):
    import zipfile

    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"ViT-B-32/{name}", b"x")
    code, _, err = assemble(clip=path)
    assert code == 2
    assert "TorchScript" in err
    assert "torch.jit.load(" in err


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_model_zoos_pickles_are_refused_with_their_conversion(assemble, tmp_path, protocol):
    path = tmp_path / "model_final.pkl"
    content = {"model": {"backbone.stem.conv1.weight": np.zeros((2, 3), np.float32)}}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    code, _, err = assemble(proposal=path)
    assert code == 2
    assert "plain pickle" in err
    assert "torch.as_tensor" in err


@pytest.mark.parametrize(
    ("options", "files", "message"),
    [
        ((), {"clip": "none.pt"}, "no file none.pt"),
        ((), {"clip": "ViT-L-14:openai"}, "ViT-L-14"),
        ((), {"proposal": "none.pth"}, "no file none.pth for --proposal"),
        ((), {"tracker": "none.st"}, "--tracker"),
        (("--clamp", 0), {}, "clamp"),
        (("--first-block", 3), {}, "3 blocks"),
        (("--first-block", -1), {}, "first_block"),
        (("--to-grid", "nearest"), {}, "nearest"),
        (("--lora-alpha", 3), {}, "--adapter"),
        (("-o", "new.pth"), {}, ".safetensors"),
    ],
    ids=str,
)
def test_wrong_usage_exits_2(assemble, options, files, message):
    code, _, err = assemble(*options, **files)
    assert code == 2
    assert message in err
    assert not assemble.path.exists()


def test_an_existing_file_is_not_replaced_unless_asked(assemble):
    assemble.path.write_text("mine")
    code, _, err = assemble()
    assert code == 2
    assert "--overwrite" in err
    assert assemble.path.read_text() == "mine"
    assert assemble("--overwrite")[0] == 0
    loaded(assemble.path)


# reading the file again


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory) -> Path:
    """A file with an adapter, to be changed in copies."""
    folder = tmp_path_factory.mktemp("whole")
    adapter = adapter_from_peft(peft(folder / "lora", lora()))
    path = folder / "instformer.safetensors"
    write_parts(InstFormerParts(CONFIG, *weights, adapter=adapter), path)
    return path


def rewritten(
    path: Path, target: Path, *, drop: str = "", add: dict | None = None, **header: str | None
) -> Path:
    with safe_open(path, framework="pt") as file:
        facts = dict(file.metadata())
    state = {k: v for k, v in load_file(path).items() if not drop or not k.startswith(drop)}
    facts = {k: v for k, v in {**facts, **header}.items() if v is not None}
    save_file({**state, **(add or {})}, target, metadata=facts)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "2"}, "version 2; this openvis-rt reads"),
        ({"format": "other"}, "'other'"),
        ({"format": None, "format_version": None}, "openvis assemble"),
        ({"config": '{"colour": 1}'}, "colour"),
        ({"config": '{"guidance": {"colour": 1}}'}, "colour"),
        ({"config": "{"}, "malformed"),
        ({"config": None}, "malformed"),
        ({"config": '{"queries": 11, "decoder_layers": 2}'}, "(10, 256) found, (11, 256) needed"),
        ({"config": '{"queries": 10, "decoder_layers": 3}'}, "missing: proposal.sem_seg_head"),
        ({"lora_alpha": None}, "alpha"),
        ({"lora_alpha": "x"}, "malformed"),
        ({"drop": "adapter.0.q.A"}, "only one of the pair A and B for 0.q"),
        ({"add": {"extra.weight": torch.ones(1)}}, "unexpected keys: extra.weight"),
        ({"add": {"adapter.0.k.A": torch.ones(1)}}, "adapter keys"),
        ({"add": {"clip.visual.odd": torch.ones(1)}}, "1 unexpected: clip.visual.odd"),
        ({"add": {"tokens.class": torch.ones(WIDTH)}}, "tokens are instance and register"),
        ({"add": {"tracker.odd": torch.ones(1)}}, "weight_ih_l0"),
        ({"add": {"tracker.weight_ih_l0": torch.ones(TOKEN, TOKEN)}}, "bias_hh_l0 [3d]"),
        ({"drop": "clip.visual.proj"}, "1 missing: clip.visual.proj"),
        ({"drop": "clip."}, "no system known here"),
    ],
    ids=range(20),
)
def test_a_changed_file_is_refused(whole, tmp_path, change, message):
    path = rewritten(whole, tmp_path / "changed.safetensors", **change)
    with pytest.raises(CheckpointError) as caught:
        loaded(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unchanged_copy_loads(whole, tmp_path):
    assert loaded(rewritten(whole, tmp_path / "same.safetensors")).config == CONFIG


def test_a_bare_mask2former_is_told_to_be_assembled(parts):
    with pytest.raises(CheckpointError, match=r"mask2former or minvis.*openvis assemble"):
        loaded(parts["proposal"])


def test_a_seeded_model_sees_as_clip_does():
    model = load_model(NAME, 3).model
    frames = torch.randint(0, 256, (1, 2 * PATCH, 3 * PATCH, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found = model.classify(frames, torch.zeros(2, 6), torch.eye(EMBED))
        tokens = found["instance_tokens"]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(model.instance_clip.instance_token, model.clip_model.visual.class_embedding)


def test_the_baseline_takes_the_same_file_without_what_was_trained(assemble, whole, tmp_path):
    code, _, err = assemble()
    assert code == 0, err
    baseline = load_model("minvis-clip-r50", assemble.path).model
    system = load_model("instformer-r50", assemble.path).model
    frames = torch.randint(0, 255, (1, 60, 90, 3), dtype=torch.uint8)
    with torch.inference_mode():
        ours, theirs = baseline.propose(frames), system.propose(frames)
    assert torch.equal(ours["mask_logits"], theirs["mask_logits"])
    with pytest.raises(CheckpointError, match=r"adapter.*no place for"):
        load_model("minvis-clip-r50", whole)
