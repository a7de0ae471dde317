"""The rollout tracker's recurrence against torch, and its matching."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from openvis_rt.errors import BundleError, InputError
from openvis_rt.runtime.tracking.association import Momentum
from openvis_rt.runtime.tracking.rollout import Cell, Rollout, cell_from_bytes
from openvis_rt.systems.recurrence import RECURRENCES, recurrence_of, recurrence_shapes

torch = pytest.importorskip("torch", reason="torch is what the recurrence is held against")

WIDTH = 24
TORCH = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


def weights_of(name, width=WIDTH, seed=0):
    """Weights as torch starts them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in TORCH:
            module = TORCH[name](width, width)
        elif name == "linear":
            module = torch.nn.Linear(width, width)
        else:
            module = torch.nn.Module()
            module.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(2))
    return module, {key: value.detach().numpy() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", TORCH)
def test_a_cell_is_torchs_over_200_frames_of_permuted_tokens(name):
    module, weights = weights_of(name)
    cell = Cell(weights)
    assert cell.kind == name
    rng = np.random.default_rng(0)
    state, worst = None, 0.0
    for _ in range(200):
        tokens = rng.standard_normal((7, WIDTH)).astype(np.float32)[rng.permutation(7)]
        with torch.inference_mode():
            wanted, state = module(torch.from_numpy(tokens)[None], state)
        worst = max(worst, float(np.abs(cell.step(tokens) - wanted[0].numpy()).max()))
    print(f"{name}: largest error {worst:.1e}")
    assert worst < 1e-6  # float32 rounding of sums of 24 terms; the state does not amplify it


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_layer_without_memory_is_torchs(name):
    module, weights = weights_of(name)
    tokens = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)
    layers = [module] if name == "linear" else [module.layers[0], torch.relu, module.layers[1]]
    x = torch.from_numpy(tokens)
    with torch.inference_mode():
        for layer in layers:
            x = layer(x)
    found = Cell(weights).step(tokens)
    np.testing.assert_allclose(found, x.numpy(), atol=1e-6)  # float32 rounding


def tracks(count=12, frames=30, noise=0.05, seed=0):
    """Tokens of a video in which every object stays itself, and the order of each frame."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((count, WIDTH)).astype(np.float32)
    for _ in range(frames):
        order = rng.permutation(count)
        noisy = base + noise * rng.standard_normal(base.shape).astype(np.float32)
        yield noisy[order], order


def test_plain_matching_follows_every_object():
    tracker = Momentum()
    first = None
    for tokens, order in tracks():
        found = order[tracker.step(tokens)]
        first = found if first is None else first
        np.testing.assert_array_equal(found, first)


def test_the_hidden_state_stays_in_the_tracks_slot():
    """A cell that has learnt nothing but to repeat the last token must track like plain matching;
    and the state of a slot is that of one object alone."""
    eye = {"weight": np.eye(WIDTH, dtype=np.float32), "bias": np.zeros(WIDTH, np.float32)}
    tracker, plain = Rollout(Cell(eye)), Momentum()
    for tokens, _ in tracks():
        np.testing.assert_array_equal(tracker.step(tokens), plain.step(tokens))
    _, weights = weights_of("rnn")
    # so small a step of the state that the recurrent part does not decide the matching
    weights = {k: (v * 0 if "bias" in k else v) for k, v in weights.items()}
    weights["weight_ih_l0"] = np.eye(WIDTH, dtype=np.float32)
    tracker = Rollout(Cell(weights))
    alone = Cell(weights)
    last = None
    for tokens, _ in tracks(noise=0.01):
        if last is not None:
            alone.step(last[:1])
        last = tokens[tracker.step(tokens)]
    np.testing.assert_allclose(tracker._cell.state["h"][0], alone.state["h"][0], atol=1e-5)


def test_memory_does_not_grow():
    _, weights = weights_of("lstm")
    tracker = Rollout(Cell(weights))
    buffers = set()
    for index, (tokens, _) in enumerate(tracks(frames=50)):
        tracker.step(tokens)
        if index:
            held = (tracker._tokens, *tracker._cell.state.values())
            buffers.add(tuple(array.ctypes.data for array in held))
    assert len(buffers) == 1


def test_reset_starts_anew():
    _, weights = weights_of("gru")
    tracker, fresh = Rollout(Cell(weights)), Rollout(Cell(weights))
    for tokens, _ in tracks(seed=1):
        tracker.step(tokens)
    tracker.reset()
    for tokens, _ in tracks():
        np.testing.assert_array_equal(tracker.step(tokens), fresh.step(tokens))


@pytest.mark.parametrize("count", [1, 2])
def test_few_tracks_and_zero_tokens(count):
    _, weights = weights_of("rnn")
    for tracker in (Momentum(), Rollout(Cell(weights))):
        for _ in range(3):
            order = tracker.step(np.zeros((count, WIDTH), np.float32))
            assert sorted(order) == list(range(count))


@pytest.mark.parametrize("name", RECURRENCES)
def test_weights_of_another_size_are_refused(name):
    _, weights = weights_of(name)
    file = save(weights)
    assert cell_from_bytes(file, WIDTH).kind == name
    with pytest.raises(BundleError, match=rf"width {WIDTH}.*are\s+768 wide"):
        cell_from_bytes(file, 768)
    key = sorted(weights)[0]
    with pytest.raises(BundleError, match=key):
        Cell({**weights, key: weights[key][:-1]})
    with pytest.raises(BundleError, match=r"a rollout's recurrence are.*weight_ih_l1"):
        Cell({**weights, "weight_ih_l1": weights[key]})


def test_damaged_files_are_refused():
    with pytest.raises(BundleError, match="cannot be read"):
        cell_from_bytes(b"\x00" * 40, WIDTH)
    with pytest.raises(BundleError, match="found nothing"):
        Cell({})


@pytest.mark.parametrize("kind", RECURRENCES)
@pytest.mark.parametrize("width", [1, 5])
def test_a_recurrence_is_known_by_its_shapes_as_torch_has_them(kind, width):
    _, weights = weights_of(kind, width)
    shapes = {key: value.shape for key, value in weights.items()}
    assert recurrence_shapes(kind, width) == shapes
    assert recurrence_of(shapes) == (kind, width)


@pytest.mark.parametrize(
    ("shapes", "found", "needed"),
    [
        ({"weight_ih_l0": (5, 5)}, "weight_ih_l0 [5, 5]", "bias_hh_l0 [3d]"),
        ({"weight": (5, 5)}, "weight [5, 5]", "weight_ih_l0 [d, d]"),
        ({"weight": (5, 4), "bias": (5,)}, "bias [5], weight [5, 4]", "bias [d], weight [d, d];"),
        ({"weight": (0, 0), "bias": (0,)}, "weight [0, 0]", "weight [d, d]"),
        ({"weight": (), "bias": ()}, "weight []", "weight [d, d]"),
    ],
    ids=str,
)
def test_half_a_recurrence_is_refused_with_what_is_needed(shapes, found, needed):
    with pytest.raises(InputError) as caught:
        recurrence_of(shapes)
    assert found in str(caught.value)
    assert needed in str(caught.value)


def test_the_time_of_the_recurrence_is_counted_over_videos(monkeypatch):
    rule = Rollout(Cell(weights_of("gru")[1]))
    clock = iter((1.0, 3.0, 10.0, 14.0))
    monkeypatch.setattr("openvis_rt.runtime.tracking.rollout.perf_counter", lambda: next(clock))
    tokens = np.eye(4, WIDTH, dtype=np.float32)
    rule.step(tokens)  # a video's first frame needs no prediction
    assert rule.recurrence_seconds == 0
    rule.step(tokens)
    rule.reset()
    rule.step(tokens)
    rule.step(tokens)
    assert rule.recurrence_seconds == 2 + 4
