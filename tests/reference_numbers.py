"""Where the reference numbers of the public implementations are looked for."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["reference_folder"]


def reference_folder() -> Path:
    """The folder that OPENVIS_REFERENCE names, else ``../shared/reference`` by the repository."""
    beside = Path(__file__).parents[2] / "shared" / "reference"
    return Path(os.environ.get("OPENVIS_REFERENCE") or beside)
