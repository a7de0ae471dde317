"""Checkpoints: every way in which a file can be wrong has a message, and none of them runs code."""

from __future__ import annotations

import pickle
import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints are read by the extra [export]")

from safetensors.torch import save_file  # noqa: E402 - after the skip
from tiny import QUERIES as QUERY_COUNT  # noqa: E402
from tiny import tiny_model  # noqa: E402

from openvis_rt.checkpoints.keys import load_checkpoint  # noqa: E402
from openvis_rt.checkpoints.load import (  # noqa: E402
    describe_checkpoint,
    model_from_checkpoint,
    model_from_seed,
)
from openvis_rt.errors import CheckpointError  # noqa: E402
from openvis_rt.models.zoo import MODELS  # noqa: E402

NAME = "clip-vis-r50"
HEAD = "sem_seg_head.predictor."
QUERIES = f"{HEAD}query_feat.weight"
POSITIONS = f"{HEAD}query_embed.weight"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    def build(*, decoder_layers: int = 2, queries: int = QUERY_COUNT):
        return tiny_model(decoder_layers=decoder_layers, queries=queries, seed=7)

    monkeypatch.setitem(MODELS, NAME, build)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny_model(seed=1).state_dict()


@pytest.fixture
def state(weights) -> dict[str, torch.Tensor]:
    return dict(weights)


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        model_from_checkpoint(NAME, path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_loaded(model, weights: dict[str, torch.Tensor]) -> None:
    assert not model.training
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, weights[key].to(value.dtype)), key


# what loads


def test_the_official_form_loads_every_weight(tmp_path, state, weights):
    assert_loaded(model_from_checkpoint(NAME, saved(tmp_path, {"model": state})), weights)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_detectron2_keeps_beside_the_weights_is_no_obstacle(tmp_path, state, weights, legacy):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "model": OrderedDict(state),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 3, "base_lrs": [1e-4]},
        "trainer": {"iteration": 3},
        "iteration": 3,
        "metric": np.float64(0.5),
        "best": [np.float32(1), np.int64(2), np.bool_(1)],
    }
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_loaded(model_from_checkpoint(NAME, path), weights)


def test_a_bare_state_dict_loads(tmp_path, state, weights):
    assert_loaded(model_from_checkpoint(NAME, saved(tmp_path, state)), weights)


def test_safetensors_load(tmp_path, state, weights):
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    assert_loaded(model_from_checkpoint(NAME, path), weights)


def test_what_only_training_needs_is_ignored(tmp_path, state, weights):
    state["criterion.empty_weight"] = torch.full((3,), torch.nan)
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    assert_loaded(model_from_checkpoint(NAME, saved(tmp_path, {"model": state})), weights)


def test_counters_of_batch_norm_may_be_absent(tmp_path, state, weights):
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    assert counters
    for key in counters:
        del state[key]
    assert_loaded(model_from_checkpoint(NAME, saved(tmp_path, {"model": state})), weights)


def test_the_old_name_of_the_queries_is_known(tmp_path, state, weights):
    state[f"{HEAD}static_query.weight"] = state.pop(QUERIES)
    assert_loaded(model_from_checkpoint(NAME, saved(tmp_path, {"model": state})), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path, state, dtype):
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    model = model_from_checkpoint(NAME, saved(tmp_path, {"model": half}))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_loaded(model, half)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_depth_is_read_from_the_file(tmp_path, layers):
    deep = tiny_model(decoder_layers=layers, seed=2).state_dict()
    model = model_from_checkpoint(NAME, saved(tmp_path, {"model": deep}))
    assert model.sem_seg_head.predictor.layers == layers
    assert_loaded(model, deep)


def test_the_same_seed_gives_the_same_weights_and_touches_no_other_randomness(monkeypatch):
    monkeypatch.setitem(MODELS, NAME, lambda: torch.nn.Linear(3, 3))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (model_from_seed(NAME, seed).weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# what does not


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    assert "no checkpoint file" in refused(tmp_path / "none.pth")
    assert "no checkpoint file" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04" + bytes(90)]
)
def test_what_is_no_checkpoint_is_refused_with_its_size(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert f"{len(content)} bytes" in refused(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_download_is_refused(tmp_path, state, form, share):
    small = {k: v for k, v in state.items() if k.startswith(HEAD)}
    path = tmp_path / f"model.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in small.items()}, path)
    else:
        torch.save({"model": small}, path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "cut short" in refused(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "pickle"])
def test_no_damage_gets_past_the_one_kind_of_error(tmp_path, form):
    """A changed byte anywhere loads as some tensors, or is refused; there is no other error."""
    small = {f"weight.{i}": torch.arange(4.0) + i for i in range(6)}
    path = tmp_path / f"model.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(small, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"model": {k: v.tolist() for k, v in small.items()}}))
    else:
        torch.save({"model": small}, path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    rng = random.Random(0)
    refusals = 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError:
            refusals += 1
    assert refusals > 0


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_a_pickle_that_would_run_code_runs_none(tmp_path, state, form):
    trap = tmp_path / "executed"
    content = {"model": dict(list(state.items())[:3]), "extra": _Evil(trap)}
    path = tmp_path / "model.pth"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(_Evil(trap), protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(path)
    assert not trap.exists()
    assert "could run code" in message
    assert "weights_only" not in message  # torch's own advice is to switch the guard off
    if form != "pickle 4":  # a protocol that torch's guard does not read that far
        assert "open" in message  # what it would have called


@pytest.mark.parametrize(
    ("keys", "system"),
    [
        (
            (
                f"{HEAD}class_embed.zs_weight",
                f"{HEAD}class_embed.cross_attention.multihead_attn.in_proj_weight",
            ),
            "ovformer",
        ),
        ((f"{HEAD}object_embed.layers.0.bias", f"{HEAD}class_embed.linear.0.weight"), "ov2seg"),
        ((f"{HEAD}class_embed.weight", f"{HEAD}mask_embed.layers.0.weight"), "minvis"),
        (("clip_adapter.clip_model.visual.proj", f"{HEAD}mask_embed.layers.0.weight"), "openvis"),
        (("visual.conv1.weight", "token_embedding.weight"), "CLIP alone"),
        (("vision_model.a", "text_model.b"), "Hugging Face"),
        (("proposal.sem_seg_head.a", "clip.visual.proj"), "instformer"),
        (("layer1.0.weight",), "no system"),
    ],
)
def test_a_checkpoint_of_another_system_is_called_by_its_name(tmp_path, keys, system):
    path = saved(tmp_path, {"model": {key: torch.zeros(2) for key in keys}})
    message = refused(path)
    assert system in message
    assert "clip-vis" in message
    if system == "instformer":  # described only with its header: test_assemble.py
        return
    described = str(describe_checkpoint(path)["system"])
    assert system in described or "none that is known" in described


def test_a_missing_key_is_named(tmp_path, state):
    del state[f"{HEAD}iou_head.layers.1.bias"]
    message = refused(saved(tmp_path, {"model": state}))
    assert f"1 missing: {HEAD}iou_head.layers.1.bias" in message
    assert "unexpected" not in message


def test_a_renamed_key_is_named_twice(tmp_path, state):
    state[f"{HEAD}query_feats.weight"] = state.pop(QUERIES)
    message = refused(saved(tmp_path, {"model": state}))
    assert f"1 missing: {QUERIES}" in message
    assert f"1 unexpected: {HEAD}query_feats.weight" in message


def test_another_shape_is_named_with_both_shapes(tmp_path, state):
    state[POSITIONS] = state[POSITIONS][:5]
    message = refused(saved(tmp_path, {"model": state}))
    assert "(5, 256) found, (10, 256) needed" in message


def test_weights_of_the_other_variant_are_refused_without_a_thousand_lines(tmp_path, state):
    other = {k.replace(".visual.", ".visual.trunk."): v for k, v in state.items()}
    message = refused(saved(tmp_path, {"model": other}))
    assert " more" in message
    assert len(message.splitlines()) < 8


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_no_number_is_refused_by_its_key(tmp_path, state, value):
    state[QUERIES] = state[QUERIES].clone()
    state[QUERIES][3, 4] = value
    message = refused(saved(tmp_path, {"model": state}))
    assert QUERIES in message
    assert "NaN or infinity" in message


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {},
        {"model": {}},
        {"model": None},
        {"model": {"a": 1.0}},
        {"model": {"a": torch.zeros(2), "b": [torch.zeros(2)]}},
    ],
    ids=str,
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    refused(saved(tmp_path, content))


def test_a_description_says_what_a_file_holds(tmp_path, state):
    facts = describe_checkpoint(saved(tmp_path, {"model": state}))
    assert facts["system"] == "clip-vis"
    assert facts["decoder layers"] == 2
    assert facts["tensors"] == len(state)
    assert facts["parameters"] == sum(v.numel() for v in state.values())
    assert facts["types"] == ["float32", "int64"]


def test_an_empty_safetensors_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "empty.safetensors"
    save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        model_from_checkpoint("clip-vis-r50", path)
