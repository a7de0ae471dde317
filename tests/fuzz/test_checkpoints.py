"""Checkpoints that a stranger made: in torch's two formats and in safetensors."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="checkpoints need the extra [export]")

import torch
from borders import survives
from hypothesis import given
from hypothesis import strategies as st
from strange import changed, damaged
from tiny import tiny_model

from openvis_rt.checkpoints.instformer import FORMAT, VERSION
from openvis_rt.checkpoints.load import Checkpoint, load_model

KEYS = st.one_of(
    st.text(max_size=400),
    st.sampled_from(
        [
            "sem_seg_head.predictor.transformer_ffn_layers.10000000000.x",
            "sem_seg_head.predictor.transformer_ffn_layers." + "9" * 200 + ".x",
            "backbone.base.layer9.9.conv9.weight",
            "a" * 100_000,
            "tokens.register",
            "adapter.9999999999.q.A",
            "token_embedding.rows",
            "\ud800",
            "\x1b]0;title\x07",
        ]
    ),
)


def _expanded() -> torch.Tensor:
    return torch.zeros(1).expand(1 << 40)


VALUES = st.sampled_from(
    [
        lambda: torch.zeros(3),
        lambda: torch.tensor(float("nan")),
        lambda: torch.zeros(2, 0, 3),
        lambda: torch.zeros(2).to_sparse(),
        lambda: torch.zeros(2, dtype=torch.complex64),
        lambda: torch.zeros(2, dtype=torch.bool),
        lambda: torch.zeros(10**12, device="meta"),
        lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
        _expanded,
        lambda: {"a": [1, 2, {"b": None}]},
        lambda: "text",
        lambda: None,
    ]
)


@pytest.fixture(scope="module")
def state():
    """The state dict of a tiny CLIP-VIS."""
    return tiny_model().state_dict()


def use(path: Path) -> None:
    """What `openvis inspect` and `openvis export` do with a file of weights."""
    survives(lambda: Checkpoint.open(path).describe())
    survives(lambda: load_model("clip-vis-mini", path))


@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # of torch, about what is saved here
def test_a_state_dict_with_strange_entries(tmp_path, state, data):
    made = dict(state)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.one_of(st.sampled_from(sorted(state)), KEYS))
        made[key] = data.draw(VALUES)()
    wrapped = data.draw(st.sampled_from([made, {"model": made}, {"state_dict": {"model": made}}]))
    torch.save(wrapped, tmp_path / "weights.pth")
    use(tmp_path / "weights.pth")


@given(data=st.data())
def test_a_torch_file_with_changed_bytes(tmp_path, state, data):
    few = {key: state[key] for key in sorted(state)[:20]}
    buffer = io.BytesIO()
    zipped = data.draw(st.booleans())
    torch.save({"model": few}, buffer, _use_new_zipfile_serialization=zipped)
    (tmp_path / "weights.pth").write_bytes(damaged(data, buffer.getvalue()))
    use(tmp_path / "weights.pth")


@given(data=st.data())
def test_a_safetensors_file_with_a_strange_header(tmp_path, data):
    header = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": str(VERSION),
            "config": json.dumps({"queries": 10, "decoder_layers": 2}),
            "sources": "{}",
        },
        "tokens.register": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "clip.token_embedding.rows": {"dtype": "F16", "shape": [2, 4], "data_offsets": [16, 32]},
    }
    text = json.dumps(data.draw(changed(header))).encode("utf-8", "surrogatepass")
    body = data.draw(st.sampled_from([bytes(32), b"\xff" * 32, bytes(8)]))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    survives(lambda: Checkpoint.open(path).describe())
    survives(lambda: load_model("instformer-mini", path))
