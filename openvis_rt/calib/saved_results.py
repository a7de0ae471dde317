"""Results of long work, each kept when it is there, so that a killed process loses one at most."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openvis_rt.errors import InputError
from openvis_rt.files import output_file
from openvis_rt.given_files import given_json

__all__ = ["SavedResults"]

_LARGEST = 1 << 30  # bytes


class SavedResults:
    """Results by name, in a file beside a bundle whose own name has a digest of what they are of.

    Args:
        beside: the bundle that is calibrated or made.
        facts: everything that the results depend on, as JSON types.
    """

    def __init__(self, beside: Path, facts: object) -> None:
        here = beside.absolute()
        self._prefix = f".{here.name}.sensitivity-"
        key = _digest(facts)[:16]
        self.path = here.parent / f"{self._prefix}{key}.json"
        self.folder = here.parent / f"{self._prefix}{key}"
        """For results that save themselves, such as those of an evaluation."""
        self._results = self._read()

    def result(self, name: str, compute: Callable[[], Any]) -> Any:
        """A result of that name, from the file or computed and kept.

        Args:
            name: of the result; the same one is of the same work.
            compute: gives it, as JSON types.

        Raises:
            OutputError: it cannot be kept.
        """
        if name not in self._results:
            self._results[name] = compute()
            with output_file(self.path) as partial:
                kept = {"sha256": _digest(self._results), "results": self._results}
                partial.write_text(json.dumps(kept) + "\n", encoding="utf-8")
        return self._results[name]

    def clear(self) -> None:
        """Remove the results, and what was left of others of the same bundle."""
        for path in self.path.parent.glob(f"{self._prefix}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            found = given_json(self.path, _LARGEST)
        except InputError:
            return {}  # nothing was kept, or what is there is nothing of ours
        results = found.get("results") if isinstance(found, dict) else None
        if not isinstance(results, dict) or found.get("sha256") != _digest(results):
            return {}  # changed since it was kept
        return results


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
