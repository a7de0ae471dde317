"""Rollout association (OpenVIS, section 3.3): tracks predict their next token, then match.

    a_t = cell(x_{t-1}, h_{t-1})            what track j's token should be in frame t
    sigma = Hungarian( 1 - cos(a_t, tokens_t) )
    x_t = tokens_t[sigma],  h_t             stay in the track's slot

The cell is torch's own, one layer, in numpy: a tanh RNN, and the ablation's GRU, LSTM, linear layer
and MLP. Its output has the token's width. Without a cell a track's token is its own prediction,
which is :class:`~openvis_rt.runtime.tracking.association.Momentum` with alpha 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from scipy.special import expit

from openvis_rt.errors import BundleError
from openvis_rt.runtime.tracking.association import hungarian, unit_rows

__all__ = ["CELLS", "Cell", "Rollout", "cell_from_file", "cell_from_weights"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Rollout:
    """Gives each frame's tokens their tracks.

    Args:
        cell: predicts.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
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
        predicted = self._cell.step(self._tokens)
        order = hungarian(1 - unit_rows(tokens) @ unit_rows(predicted).T)
        np.take(tokens, order, axis=0, out=self._tokens)
        return order


class Cell:
    """One recurrent layer over N tracks at once; its state has one row for each track.

    Args:
        name: one of :data:`CELLS`.
        weights: float32 arrays under torch's names, ``weight_ih_l0`` [gates * D, D] and so on.

    Raises:
        BundleError: a weight is missing, unknown or of another size.
    """

    def __init__(self, name: str, weights: Mapping[str, Floats]) -> None:
        if name not in CELLS:
            raise BundleError(f"there is no rollout cell {name!r}; there are: {', '.join(CELLS)}")
        self.name = name
        shapes, self._advance = CELLS[name]
        wanted = shapes(_width(name, weights))
        found = {key: value.shape for key, value in weights.items()}
        if found != wanted:
            raise BundleError(
                f"rollout weights of a {name} of token width {_width(name, weights)} are "
                f"{_listing(wanted)}; found {_listing(found)}"
            )
        self.width = _width(name, weights)
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


def cell_from_weights(weights: Mapping[str, Floats]) -> Cell:
    """The cell that weights belong to, by their names and shapes."""
    keys = set(weights)
    for name, (shapes, _) in CELLS.items():
        if keys == set(shapes(1)) and keys:
            gates = _gates(weights)
            if gates is None or gates == {"rnn": 1, "gru": 3, "lstm": 4}.get(name):
                return Cell(name, weights)
    raise BundleError(
        f"{_listing({k: v.shape for k, v in weights.items()})} are the weights of no rollout cell "
        f"that is known: {', '.join(CELLS)}, one layer, with torch's own names"
    )


def cell_from_file(path: Path, width: int) -> Cell:
    """The cell of a ``tracker.safetensors``.

    Raises:
        BundleError: the file is damaged, holds no known cell, or one of another token width.
    """
    try:
        with safe_open(path, framework="np") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as exc:
        raise BundleError(f"{path} cannot be read: {exc}") from exc
    cell = cell_from_weights(weights)
    if cell.width != width:
        raise BundleError(
            f"{path} is a {cell.name} for tokens of width {cell.width}, and the model's are "
            f"{width} wide"
        )
    return cell


Shapes = Callable[[int], dict[str, tuple[int, ...]]]
Advance = Callable[[dict[str, Floats], dict[str, Floats], Floats], Floats]


def _gates(weights: Mapping[str, Floats]) -> int | None:
    matrix = weights.get("weight_ih_l0")
    return None if matrix is None or matrix.ndim != 2 else len(matrix) // max(1, matrix.shape[1])


def _width(name: str, weights: Mapping[str, Floats]) -> int:
    key = {"linear": "weight", "mlp": "layers.0.weight"}.get(name, "weight_ih_l0")
    matrix = weights.get(key)
    return matrix.shape[-1] if matrix is not None and matrix.ndim == 2 else 0


def _listing(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {list(shape)}" for key, shape in sorted(shapes.items())) or "nothing"


def _recurrent(gates: int) -> Shapes:
    return lambda d: {
        "weight_ih_l0": (gates * d, d),
        "weight_hh_l0": (gates * d, d),
        "bias_ih_l0": (gates * d,),
        "bias_hh_l0": (gates * d,),
    }


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


CELLS: dict[str, tuple[Shapes, Advance]] = {
    "rnn": (_recurrent(1), _rnn),
    "gru": (_recurrent(3), _gru),
    "lstm": (_recurrent(4), _lstm),
    "linear": (lambda d: {"weight": (d, d), "bias": (d,)}, _linear),
    "mlp": (
        lambda d: {
            "layers.0.weight": (d, d),
            "layers.0.bias": (d,),
            "layers.1.weight": (d, d),
            "layers.1.bias": (d,),
        },
        _mlp,
    ),
}
"""By name: the shapes of its weights for a token width, and one step."""
