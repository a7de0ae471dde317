"""What the repository's ``config.pbtxt`` tells the model `openvis`, written and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from openvis_rt.errors import InputError
from openvis_rt.given_files import given_json
from openvis_rt.runtime.backends.registry import Device
from openvis_rt.runtime.options import Selection, TrackingOptions
from openvis_rt.vocabulary import Vocabulary

__all__ = ["ModelSettings"]

_LARGEST = 64 << 20  # bytes of the file of names


@dataclass(frozen=True)
class ModelSettings:
    """How the model runs.

    Attributes:
        vocabulary: of a sequence that names none.
        precision: of the bundle's graphs.
        graphs: beginning of the names of the graphs' own models, such as ``openvis`` of
            ``openvis_propose``; None where the python model opens the graphs itself.
        backend, device, threads: with which it opens them, as for :meth:`.Pipeline.open`.
        selection: what a frame's result shows, where a sequence says nothing else.
        tracking: see its class.
        sequences: at a time, in each instance.
        idle_seconds: after which a sequence's place is given away.
    """

    vocabulary: Vocabulary
    precision: str = "fp32"
    graphs: str | None = None
    backend: str = "auto"
    device: Device = "auto"
    threads: int | None = None
    selection: Selection = field(default_factory=Selection)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    sequences: int = 64
    idle_seconds: float = 60.0

    def to_parameters(self) -> dict[str, str]:
        """For ``parameters`` of the configuration; what is None is left out.

        The sequence batcher has the number of sequences and their time, and a file the vocabulary.
        """
        found = {
            "precision": self.precision,
            "graphs": self.graphs,
            "backend": self.backend,
            "device": self.device,
            "threads": self.threads,
            "threshold": self.selection.threshold,
            "max_instances": self.selection.limit,
            "window_length": self.tracking.window_length,
        }
        return {name: str(value) for name, value in found.items() if value is not None}

    def write_vocabulary(self, path: Path) -> None:
        """Write the names to a JSON file, ``{"names": [...], "others": [...]}``."""
        entry = {"names": self.vocabulary.names, "others": self.vocabulary.others}
        path.write_text(json.dumps(entry, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, config: Mapping[str, Any], vocabulary: Path) -> ModelSettings:
        """Inverse of both.

        Args:
            config: the model's configuration as Triton hands it on.
            vocabulary: the file of names.

        Raises:
            InputError: one was changed to what cannot be used; the message says which.
        """
        words = _words(vocabulary)
        try:
            found = {key: entry["string_value"] for key, entry in config["parameters"].items()}
            batching = config["sequence_batching"]
            return cls(
                vocabulary=words,
                precision=found["precision"],
                graphs=found.get("graphs"),
                backend=found["backend"],
                device=cast("Device", found["device"]),
                threads=_whole(found.get("threads")),
                selection=Selection(float(found["threshold"]), int(found["max_instances"])),
                tracking=TrackingOptions(_whole(found.get("window_length"))),
                sequences=int(batching["oldest"]["max_candidate_sequences"]),
                idle_seconds=int(batching["max_sequence_idle_microseconds"]) / 1e6,
            )
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as exc:
            raise InputError(
                f"config.pbtxt has no parameters of the model: {exc!r}. Write the repository anew "
                "with `openvis triton`."
            ) from exc


def _words(path: Path) -> Vocabulary:
    entry = given_json(path, _LARGEST)
    names, others = (
        entry.get(key) if isinstance(entry, dict) else None for key in ("names", "others")
    )
    for found in (names, others):  # a string would be taken for a list of its letters
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise InputError(
                f"{path} has no names and others, which are lists of strings. Write the "
                "repository anew with `openvis triton`."
            )
    return Vocabulary(tuple(names or ()), tuple(others or ()))


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)
