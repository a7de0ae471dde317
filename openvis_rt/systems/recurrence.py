"""The rollout's recurrence as a file holds it: one layer under torch's own names.

It predicts a track's next token from its last one, so its input and its output both have the
token's width d. Every size of every weight is a multiple of d: those of torch's ``RNN``, ``GRU``
and ``LSTM`` of one layer with d hidden units, of ``Linear``, and of two ``Linear`` layers with a
ReLU between them.
"""

from __future__ import annotations

from collections.abc import Mapping

from openvis_rt.errors import InputError

__all__ = ["RECURRENCES", "recurrence_of", "recurrence_shapes"]

Shapes = Mapping[str, tuple[int, ...]]


def _recurrent(gates: int) -> Shapes:
    return {
        "weight_ih_l0": (gates, 1),
        "weight_hh_l0": (gates, 1),
        "bias_ih_l0": (gates,),
        "bias_hh_l0": (gates,),
    }


RECURRENCES: dict[str, Shapes] = {
    "rnn": _recurrent(1),
    "gru": _recurrent(3),
    "lstm": _recurrent(4),
    "linear": {"weight": (1, 1), "bias": (1,)},
    "mlp": {
        "layers.0.weight": (1, 1),
        "layers.0.bias": (1,),
        "layers.1.weight": (1, 1),
        "layers.1.bias": (1,),
    },
}
"""For each kind its weights, and their sizes in units of d."""


def recurrence_shapes(kind: str, width: int) -> dict[str, tuple[int, ...]]:
    """The weights of a kind for tokens of that width."""
    return {key: tuple(n * width for n in sizes) for key, sizes in RECURRENCES[kind].items()}


def recurrence_of(shapes: Shapes) -> tuple[str, int]:
    """The kind and the token width of the weights of a recurrence.

    Args:
        shapes: of all its weights, by their names.

    Raises:
        InputError: they are those of no kind; the message lists what was found and what is needed.
    """
    widths = {shape[-1] for shape in shapes.values() if shape and shape[-1]}
    for kind in RECURRENCES:
        for width in widths:
            if recurrence_shapes(kind, width) == shapes:
                return kind, width
    likely = [kind for kind, sizes in RECURRENCES.items() if sizes.keys() == shapes.keys()]
    needed = "; ".join(
        f"{kind}: {_listing(RECURRENCES[kind], 'd')}" for kind in likely or RECURRENCES
    )
    raise InputError(
        "the weights of a rollout's recurrence are, for tokens of width d, "
        f"{needed}; found {_listing(shapes) or 'nothing'}"
    )


def _listing(shapes: Shapes, unit: str = "") -> str:
    """Such as ``bias [3d], weight [d, d]``."""
    sized = {
        key: ", ".join(unit if unit and n == 1 else f"{n}{unit}" for n in shape)
        for key, shape in shapes.items()
    }
    return ", ".join(f"{key} [{sizes}]" for key, sizes in sorted(sized.items()))
