"""Bundles whose files were changed, and whose manifest has the right digests all the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["replaced", "sealed"]


def replaced(bundle: Path, name: str, data: bytes) -> None:
    """Put other bytes in place of a bundle's file, and their true digest into the manifest."""
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / "bundle.json").read_text())
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    sealed(bundle, {**manifest, "files": {**manifest["files"], name: entry}})


def sealed(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the digest that belongs to it."""
    data = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    (bundle / "bundle.json").unlink()
    (bundle / "bundle.json").write_text(json.dumps({**data, "manifest_sha256": digest}))
