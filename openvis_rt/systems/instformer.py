"""The choices of InstFormer that its paper leaves open, as an assembled checkpoint records them.

No heavy library is needed here: the command line shows the defaults of these fields.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from openvis_rt.errors import InputError

__all__ = ["Guidance", "InstFormerConfig", "ToGrid", "Values", "VideoScore"]

ToGrid = Literal["area", "bilinear", "max"]
Values = Literal["logit", "binary"]
VideoScore = Literal["mean-logits", "mean-logits-objectness"]


@dataclass(frozen=True)
class Guidance:
    """How instances see; the first value of each field is the default, for reasons in the paper.

    Attributes:
        to_grid: mask logits to the patch grid: ``area`` average, ``bilinear`` sampling, or ``max``.
        values: ``logit``: the guidance is scale * logit; ``binary``: 0 where the logit is above 0,
            else -100 (the paper's ablation).
        scale, clamp: of ``logit`` guidance, which ends within -clamp..clamp.
        sees_register: instances see the register as well.
        first_block: the block from which on there are instance tokens; 0 in the paper. The side
            adapter of SAN, the nearest public relative, begins at 9.
        projected: instance tokens end in CLIP's shared space (512); else they are what comes before
            the projection (768), and only class logits take them through it.
    """

    to_grid: ToGrid = "area"
    values: Values = "logit"
    scale: float = 1.0
    clamp: float = 30.0
    sees_register: bool = False
    first_block: int = 0
    projected: bool = True

    def __post_init__(self) -> None:
        _check_choice("to_grid", self.to_grid, get_args(ToGrid))
        _check_choice("values", self.values, get_args(Values))
        _check_types(self)
        if not (math.isfinite(self.scale) and self.clamp > 0 and self.first_block >= 0):
            raise InputError(
                "scale must be finite, clamp above 0 and first_block at least 0; got "
                f"{self.scale}, {self.clamp} and {self.first_block}"
            )


@dataclass(frozen=True)
class InstFormerConfig:
    """What a checkpoint must say of itself beside its weights.

    Attributes:
        guidance: how instances see; see :class:`Guidance`.
        video_score: class scores of a video: the softmax of the mean logits over the frames where
            the mask is not empty, or that times the mean objectness.
        normalise_parts: the two parts of a tracking token are L2-normalised before they are joined.
        quick_gelu: CLIP's activation. OpenAI's weights were trained with x * sigmoid(1.702 x),
            LAION's and DataComp's with the exact GELU.
        classes: of the proposal network's class head, without "no object"; 1 is class-agnostic.
        decoder_layers, queries: of the proposal network.
    """

    guidance: Guidance = field(default_factory=Guidance)
    video_score: VideoScore = "mean-logits"
    normalise_parts: bool = True
    quick_gelu: bool = True
    classes: int = 1
    decoder_layers: int = 9
    queries: int = 100

    def __post_init__(self) -> None:
        _check_choice("video_score", self.video_score, get_args(VideoScore))
        _check_types(self)
        if min(self.classes, self.decoder_layers, self.queries) < 1:
            raise InputError(
                "classes, decoder_layers and queries must be at least 1; got "
                f"{self.classes}, {self.decoder_layers} and {self.queries}"
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Any) -> InstFormerConfig:
        """Inverse of :meth:`to_json`; fields that are absent have their defaults.

        Raises:
            InputError: a field is unknown, or its value is of another type or out of range.
        """
        try:
            return cls(**{**entry, "guidance": Guidance(**entry.get("guidance", {}))})
        except (TypeError, AttributeError) as exc:
            raise InputError(f"the model's configuration is malformed: {exc}") from exc


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} is one of {', '.join(known)}; got {value!r}")


def _check_types(config: Guidance | InstFormerConfig) -> None:
    """Numbers and truth values are what they say; a file may hold anything."""
    kinds: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float)}
    for entry in fields(config):
        value, kind = getattr(config, entry.name), str(entry.type)
        wanted = kinds.get(kind)
        if wanted and (
            not isinstance(value, wanted) or isinstance(value, bool) != (kind == "bool")
        ):
            raise InputError(f"{entry.name} is a number or a truth value ({kind}); got {value!r}")
