"""The weights that come with the package: their compact files, and what is said of bad ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints are read by the extra [export]")

import open_clip  # noqa: E402 - after the skip
from packed_miniatures import MINIATURES, pack_random_miniatures  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from openvis_rt.checkpoints import shipped  # noqa: E402
from openvis_rt.checkpoints.clip import clip_weights  # noqa: E402
from openvis_rt.checkpoints.load import Checkpoint, load_model  # noqa: E402
from openvis_rt.checkpoints.shipped import (  # noqa: E402
    compact,
    expanded,
    shipped_checkpoint,
    shipped_clip,
)
from openvis_rt.errors import CheckpointError, InputError  # noqa: E402
from openvis_rt.files import sha256_of  # noqa: E402
from openvis_rt.systems import VARIANTS  # noqa: E402
from openvis_rt.training.miniatures import captions_tokens, pack  # noqa: E402
from openvis_rt.training.world_categories import CATEGORIES  # noqa: E402
from openvis_rt.vocabulary import VILD_PROMPTS  # noqa: E402

TOKENS = 49408
ROWS, KEPT = "clip.token_embedding.rows", "clip.token_embedding.kept"


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# compact files


def test_what_was_compact_is_whole_again_but_for_rows_that_were_not_kept(tmp_path):
    table, matrix, positions = drawn(TOKENS, 4), drawn(3, 5, seed=1), drawn(77, 4, seed=2)
    tokens = torch.tensor([0, 7, 320, TOKENS - 1])
    whole = {
        "clip.token_embedding.weight": table,
        "clip.positional_embedding": positions,
        "clip.visual.positional_embedding": matrix,
        "clip.visual.proj": matrix.T,  # not contiguous, which a file cannot hold
        "clip.visual.bn.num_batches_tracked": torch.tensor(9),
    }
    small = compact(whole, tokens, 9)
    save_file(small, tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < 1300
    again = expanded(load_file(tmp_path / "small.safetensors"), tmp_path / "small.safetensors")
    assert again.keys() == whole.keys()
    assert again["clip.token_embedding.weight"].shape == table.shape
    assert torch.equal(again["clip.token_embedding.weight"][tokens], table[tokens].half())
    others = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, tokens, value=False)
    assert not again["clip.token_embedding.weight"][others].any()
    found = again["clip.positional_embedding"]
    assert torch.equal(found[:9], positions[:9].half())
    assert found.shape == (77, 4)
    assert not found[9:].any()
    assert torch.equal(again["clip.visual.positional_embedding"], matrix.half())
    assert torch.equal(again["clip.visual.proj"], matrix.T.half())
    assert torch.equal(again["clip.visual.bn.num_batches_tracked"], torch.tensor(9))


def test_other_files_stay_as_they_are(tmp_path):
    state = {"clip.token_embedding.weight": drawn(10, 4), "a": drawn(2)}
    found = expanded(state, tmp_path)
    assert found.keys() == state.keys()
    assert all(found[key] is state[key] for key in state)


@pytest.mark.parametrize("shape", [(78, 4), (0, 4), (9,)])
def test_positions_that_clip_has_not_are_refused(tmp_path, shape):
    with pytest.raises(CheckpointError, match="is no table of 1 to 77 positions"):
        expanded({"clip.positional_embedding.first": drawn(*shape)}, tmp_path)


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        (None, "no such key"),
        (torch.tensor([1, 2]), r"int64 \[2\], 1 to 2"),
        (torch.tensor([[1], [2], [3]]), r"int64 \[3, 1\]"),
        (torch.tensor([1.0, 2.0, 3.0]), "float32"),
        (torch.tensor([1, 2, TOKENS]), "1 to 49408"),
        (torch.tensor([-1, 2, 3]), "-1 to 3"),
        (torch.tensor([1, 2, 2]), r"int64 \[3\], 1 to 2"),
    ],
    ids=["none", "fewer", "a column", "floats", "beyond", "below 0", "twice"],
)
def test_rows_without_their_tokens_are_refused(tmp_path, kept, found):
    path = tmp_path / "model.safetensors"
    save_file({ROWS: drawn(3, 4), **({} if kept is None else {KEPT: kept})}, path)
    with pytest.raises(CheckpointError, match=rf"{ROWS} \[3, 4\] needs {KEPT}.*{found}") as caught:
        Checkpoint.open(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_rows_that_are_no_matrix_are_refused(tmp_path):
    for rows in (torch.zeros(()), torch.zeros(3), torch.zeros(3, 4, 5)):
        with pytest.raises(CheckpointError, match="needs"):
            expanded({ROWS: rows, KEPT: torch.arange(3)}, tmp_path)


def test_every_token_that_a_caption_or_a_class_name_can_have_is_kept():
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    phrases = [category.phrase for category in CATEGORIES]
    prompts = {*VILD_PROMPTS, *(p for name in MINIATURES for p in VARIANTS[name].prompts)}
    texts = [prompt.format(phrase) for prompt in prompts for phrase in phrases]
    texts += phrases
    texts += [f"a {one} and a {two}" for one, two in zip(phrases, phrases[::-1], strict=True)]
    kept = captions_tokens()
    assert set(np.unique(tokenize(texts).numpy()).tolist()) <= set(kept.tolist())
    assert len(kept) < 200
    assert kept.tolist() == sorted(kept.tolist())


# what is shipped


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random_miniatures(tmp_path_factory.mktemp("miniatures"))


@pytest.fixture
def come_with_the_package(packed, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", packed)


@pytest.mark.usefixtures("come_with_the_package")
@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_loads_without_a_file(name):
    loaded = load_model(name)
    model = loaded.model
    assert model.variant is VARIANTS[name]
    assert not model.training
    assert loaded.warnings == ()
    assert loaded.facts["file"] == f"{name}.safetensors"
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert ("clip" in loaded.facts) == VARIANTS[name].takes_clip
    described = Checkpoint.open(shipped_checkpoint(VARIANTS[name])).describe()
    assert described["model"] == name
    with torch.inference_mode():
        found = model.propose(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    assert found["mask_logits"].shape == (20, 1, 16, 24)


@pytest.mark.usefixtures("come_with_the_package")
def test_the_files_are_small():
    sizes = [shipped_checkpoint(VARIANTS[name]).stat().st_size for name in MINIATURES]
    assert max(sizes) < 8 * 2**20
    assert sum(sizes) < 16 * 2**20


@pytest.mark.usefixtures("come_with_the_package")
@pytest.mark.parametrize("name", ["clip-vis-r50", "ovformer-video-r50", "minvis-r50"])
def test_weights_that_are_not_shipped_are_told_with_those_that_are(name):
    with pytest.raises(InputError) as caught:
        load_model(name)
    message = str(caught.value)
    assert name in message
    assert all(miniature in message for miniature in MINIATURES)
    assert "--checkpoint FILE" in message
    assert "--random-weights SEED" in message


@pytest.mark.usefixtures("come_with_the_package")
def test_a_clip_may_be_an_instformer_checkpoint():
    """OVFormer's miniature takes the CLIP of InstFormer's, as it was before the adapter."""
    beside = shipped_clip(VARIANTS["ovformer-mini"])
    assert beside == shipped_checkpoint(VARIANTS["instformer-mini"])
    assert shipped_clip(VARIANTS["clip-vis-mini"]) is None
    state = clip_weights(beside)
    assert state["token_embedding.weight"].shape == (TOKENS, 64)
    raw = load_file(beside)
    assert any(key.startswith("adapter.") for key in raw)
    attention = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(state[attention], raw[f"clip.{attention}"])
    assert not any(key.startswith(("proposal.", "clip.", "adapter.")) for key in state)
    given = load_model(
        "ovformer-mini", shipped_checkpoint(VARIANTS["ovformer-mini"]), str(beside)
    ).model.clip_model.state_dict()
    assert torch.equal(given[attention], state[attention].float())
    own = load_model("ovformer-mini").model.clip_model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in given.items())


def test_without_shipped_weights_it_is_said_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="no weights come with this package") as caught:
        load_model("clip-vis-mini")
    assert "docs/training.md" in str(caught.value)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds none of the runs clip-vis, tokens, ovformer"):
        pack(tmp_path, tmp_path / "out")
    (tmp_path / "ovformer").mkdir()
    with pytest.raises(InputError, match=r"ovformer holds no run: there is no .*last\.pt"):
        pack(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# what is shipped


def test_every_miniature_is_shipped_with_a_card_and_all_are_small():
    files = sorted(shipped.FOLDER.glob("*.safetensors"))
    assert [file.stem for file in files] == sorted(MINIATURES)
    for file in files:
        card = file.with_suffix(".md").read_text(encoding="utf-8")
        assert f"`{sha256_of(file)}`" in card
        for told in ("Licence", "Data and recipe", "seconds", "AP50"):
            assert told in card
    assert sum(file.stat().st_size for file in files) <= 12 * 2**20
