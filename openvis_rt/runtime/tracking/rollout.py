"""Rollout association (OpenVIS, section 3.3): tracks predict their next token, then match.

    a_t = cell(x_{t-1}, h_{t-1})            what track j's token should be in frame t
    sigma = Hungarian( 1 - cos(a_t, tokens_t) )
    x_t = tokens_t[sigma],  h_t             stay in the track's slot

The cell is torch's own in numpy: a tanh RNN, and the ablation's GRU, LSTM, linear layer and MLP;
:mod:`openvis_rt.systems.recurrence` has its format. Without a cell a track's token is its own
prediction, which is :class:`~openvis_rt.runtime.tracking.association.Momentum` with alpha 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load
from scipy.special import expit

from openvis_rt.errors import BundleError, InputError
from openvis_rt.runtime.tracking.association import hungarian, unit_rows
from openvis_rt.systems.recurrence import recurrence_of

__all__ = ["LARGEST", "Cell", "Rollout", "cell_from_bytes"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_LARGEST_WEIGHT = 1e10  # as of checkpoints: sums over it stay far from float32's end
LARGEST = 1 << 30
"""Bytes of a file of weights at most; of InstFormer's tokens an LSTM has 19 MB."""


class Rollout:
    """Gives each frame's tokens their tracks.

    Args:
        cell: predicts.

    Attributes:
        recurrence_seconds: that the cell took since this was made, over all videos.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell, self.recurrence_seconds = cell, 0.0
        self._tokens: Floats | None = None

    def reset(self) -> None:
        """Forget every frame; the next one starts new tracks."""
        self._tokens = None
        self._cell.reset()

    def step(self, tokens: Floats) -> Ints:
        """Match a frame with the tracks.

        Args:
            tokens: float32 [N, D], the same N and D in every frame; read only.

        Returns:
            int64 [N]: track j is token ``out[j]`` of this frame. The first frame's is 0..N-1.
        """
        if self._tokens is None:
            self._tokens = tokens.astype(np.float32, copy=True)
            return np.arange(len(tokens), dtype=np.int64)
        begin = perf_counter()
        predicted = self._cell.step(self._tokens)
        self.recurrence_seconds += perf_counter() - begin
        order = hungarian(1 - unit_rows(tokens) @ unit_rows(predicted).T)
        np.take(tokens, order, axis=0, out=self._tokens)
        return order


class Cell:
    """One recurrent layer over N tracks at once; its state has one row for each track.

    Args:
        weights: float32 arrays, as :mod:`openvis_rt.systems.recurrence` lists them.

    Attributes:
        kind: such as ``gru``.
        width: of a token.

    Raises:
        BundleError: they are the weights of no recurrence.
    """

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        try:
            self.kind, self.width = recurrence_of({k: v.shape for k, v in weights.items()})
        except InputError as exc:
            raise BundleError(str(exc)) from exc
        self._advance = _STEPS[self.kind]
        self._weights = {k: np.ascontiguousarray(v, np.float32) for k, v in weights.items()}
        self.reset()

    def reset(self) -> None:
        """Back to h = 0."""
        self.state: dict[str, Floats] = {}

    def step(self, tokens: Floats) -> Floats:
        """Predicted tokens float32 [N, D] from the tracks' last ones; the state moves on."""
        if not self.state:
            self.state = {key: np.zeros_like(tokens, np.float32) for key in ("h", "c")}
        return self._advance(self._weights, self.state, tokens)


def cell_from_bytes(file: bytes, width: int) -> Cell:
    """The cell of the bytes of a ``tracker.safetensors``.

    Raises:
        BundleError: the file is damaged, holds no known cell, or one of another token width.
    """
    try:
        weights = load(file)
    except Exception as exc:  # of types that numpy lacks it is a KeyError
        raise BundleError(f"the bundle's tracker.safetensors cannot be read: {exc}") from exc
    for name, value in weights.items():
        if value.dtype != np.float32 or not (np.abs(value) <= _LARGEST_WEIGHT).all():  # or NaN
            raise BundleError(
                f"{name!r} of the bundle's tracker.safetensors is {value.dtype}, or has numbers "
                f"that are not finite or are beyond {_LARGEST_WEIGHT:g}; weights are float32 and "
                "some tens at the most"
            )
    try:
        cell = Cell(weights)
    except InputError as exc:
        raise BundleError(f"the bundle's tracker.safetensors holds no recurrence: {exc}") from exc
    if cell.width != width:
        raise BundleError(
            f"the bundle's tracker.safetensors is a {cell.kind} for tokens of width {cell.width}, "
            f"and the model's are {width} wide"
        )
    return cell


def _sums(weights: dict[str, Floats], state: dict[str, Floats], x: Floats) -> tuple[Floats, Floats]:
    """W_ih x + b_ih and W_hh h + b_hh."""
    return (
        x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"],
        state["h"] @ weights["weight_hh_l0"].T + weights["bias_hh_l0"],
    )


def _rnn(weights: dict[str, Floats], state: dict[str, Floats], x: Floats) -> Floats:
    inputs, hidden = _sums(weights, state, x)
    np.tanh(inputs + hidden, out=state["h"])
    return state["h"]


def _gru(weights: dict[str, Floats], state: dict[str, Floats], x: Floats) -> Floats:
    (ir, iz, i_n), (hr, hz, hn) = (np.split(s, 3, axis=1) for s in _sums(weights, state, x))
    r, z = expit(ir + hr), expit(iz + hz)
    n = np.tanh(i_n + r * hn)
    state["h"][...] = (1 - z) * n + z * state["h"]
    return state["h"]


def _lstm(weights: dict[str, Floats], state: dict[str, Floats], x: Floats) -> Floats:
    inputs, hidden = _sums(weights, state, x)
    i, f, g, o = np.split(inputs + hidden, 4, axis=1)
    state["c"][...] = expit(f) * state["c"] + expit(i) * np.tanh(g)
    np.multiply(expit(o), np.tanh(state["c"]), out=state["h"])
    return state["h"]


def _linear(weights: dict[str, Floats], _state: dict[str, Floats], x: Floats) -> Floats:
    out: Floats = x @ weights["weight"].T + weights["bias"]
    return out


def _mlp(weights: dict[str, Floats], _state: dict[str, Floats], x: Floats) -> Floats:
    hidden = np.maximum(x @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
    out: Floats = hidden @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    return out


_STEPS: dict[str, Callable[[dict[str, Floats], dict[str, Floats], Floats], Floats]] = {
    "rnn": _rnn,
    "gru": _gru,
    "lstm": _lstm,
    "linear": _linear,
    "mlp": _mlp,
}
"""By kind: weights, state and tokens [N, D] to predicted tokens [N, D]; the state is changed."""
