"""``openvis triton``: a bundle becomes a model repository.

    REPOSITORY/openvis/config.pbtxt           the stateful model: tracks, classifies, makes masks
    REPOSITORY/openvis/1/model.py             imports it from the installed openvis-rt
    REPOSITORY/openvis/1/vocabulary.json      names for sequences that name none; may be edited
    REPOSITORY/openvis/1/bundle/              the bundle, of one precision
    REPOSITORY/openvis_propose/config.pbtxt   a model for each graph, where those are wanted
    REPOSITORY/openvis_propose/1/model.onnx   or model.plan

It is complete in itself: nothing in it leads to the bundle that it was made of.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from openvis_rt.bundle.bundle import MANIFEST, Bundle, write_manifest
from openvis_rt.bundle.contract import check_contract
from openvis_rt.bundle.manifest_file import read_manifest
from openvis_rt.engines.plan import check_plan, sidecar_path
from openvis_rt.errors import BundleError, InputError
from openvis_rt.files import output_directory
from openvis_rt.runtime.backends.registry import BACKENDS
from openvis_rt.runtime.classifier import classifier_for
from openvis_rt.serving.triton.backend import model_name
from openvis_rt.serving.triton.config import KINDS, graph_config, model_config, plan_config
from openvis_rt.serving.triton.model import BUNDLE, VOCABULARY
from openvis_rt.serving.triton.settings import ModelSettings

__all__ = ["GRAPHS", "GraphModels", "RepositoryReport", "write_repository"]

GraphModels = Literal["onnxruntime", "tensorrt", "inside"]
GRAPHS = get_args(GraphModels)
"""What runs the graphs: a model of its own for each, by one of Triton's backends, or the stateful
model itself."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*")
_VERSION = "1"
_MOST = (1 << 31) - 1  # of an int32 in Triton's configuration
_MODEL_FILE = '''"""Triton's door to openvis-rt, which must be installed for the server's Python."""

import os
import sys

# the server's embedded Python passes the usual variable over
sys.path += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p not in sys.path]

from openvis_rt.serving.triton.model import OpenVisModel as TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True)
class RepositoryReport:
    """What was written.

    Attributes:
        path: of the repository.
        models: their names; the first one is what clients call.
        precision: of the graphs.
        graphs: what runs them, of :data:`GRAPHS`.
        bytes: of all files.
    """

    path: Path
    models: tuple[str, ...]
    precision: str
    graphs: GraphModels
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "path": str(self.path),
            "models": list(self.models),
            "precision": self.precision,
            "graphs": self.graphs,
            "bytes": self.bytes,
        }


def write_repository(
    bundle: str | Path | Bundle,
    output: Path,
    settings: ModelSettings,
    *,
    name: str = "openvis",
    graphs: GraphModels = "inside",
    engines: str | None = None,
    instances: int = 1,
    overwrite: bool = False,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
) -> RepositoryReport:
    """Write a model repository; it takes its name when it is whole.

    Args:
        bundle: what is to be served.
        output: the repository, a directory that is made here.
        settings: of the stateful model; ``graphs`` in it follows from the argument.
        name: of the stateful model, and the beginning of the graphs' names.
        graphs: of :data:`GRAPHS`.
        engines: folder in the bundle's ``engines/`` to serve with ``tensorrt``; None for the only
            one of TensorRT.
        instances: of the stateful model.
        overwrite: replace a repository that an earlier call made.
        progress: told of the files that are written, done and in all.

    Raises:
        BundleError: the bundle cannot be used, or has no such precision.
        InputError: a name, number or choice that Triton would not take.
        EngineError: an engine is missing, damaged, or of another ONNX file.
        OutputError: the place cannot be written, or is taken.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    check_contract(bundle.manifest)
    settings = replace(settings, graphs=None if graphs == "inside" else name)
    _check(bundle, settings, name, graphs, instances)
    plans = _plans(bundle, settings.precision, engines) if graphs == "tensorrt" else {}
    own = [] if graphs == "inside" else list(bundle.graphs)
    with output_directory(output, overwrite=overwrite, ours=_is_repository) as folder:
        home = folder / name
        copies = list(_copies(bundle, settings.precision, home / _VERSION / BUNDLE))
        for done, (source, target) in enumerate(copies):
            progress("copying the bundle", done, len(copies))
            _copy(source, target)
        _write_bundle(bundle, settings.precision, home / _VERSION / BUNDLE)
        (home / _VERSION / "model.py").write_text(_MODEL_FILE, encoding="utf-8")
        settings.write_vocabulary(home / _VERSION / VOCABULARY)
        config = model_config(name, settings, instances)
        (home / "config.pbtxt").write_text(config, encoding="utf-8")
        for done, graph in enumerate(own):
            progress("writing the graphs' models", done, len(own))
            _write_graph(folder, bundle, graph, settings, plans.get(graph))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    models = (name, *(model_name(name, graph) for graph in own))
    return RepositoryReport(output, models, settings.precision, graphs, size)


def _check(
    bundle: Bundle, settings: ModelSettings, name: str, graphs: GraphModels, instances: int
) -> None:
    bundle.graph("propose", settings.precision)
    if not _NAME.fullmatch(name):
        raise InputError(f"a model's name is of letters, digits, _, . and -; got {name!r}")
    if graphs not in GRAPHS:
        raise InputError(f"the graphs are run by {', '.join(GRAPHS)}; got {graphs!r}")
    if settings.backend not in ("auto", *BACKENDS):
        raise InputError(f"there is no backend {settings.backend!r} for the graphs")
    if settings.device not in KINDS:
        raise InputError(f"there is no device {settings.device!r}; there are {', '.join(KINDS)}")
    if not (
        1 <= instances <= _MOST
        and 1 <= settings.sequences <= _MOST
        and 0 < settings.idle_seconds <= _MOST
    ):
        raise InputError(
            "a model has at least one instance, one sequence and some time until it is idle, and "
            f"at most {_MOST} of each; got {instances}, {settings.sequences} and "
            f"{settings.idle_seconds:g} s"
        )
    spec = bundle.graph("classify", settings.precision).spec
    if all(tensor.name != "text_embeddings" for tensor in spec.inputs):  # or no sequence would run
        classifier_for(bundle, settings.precision, settings.vocabulary, None, None, lambda *_: None)


def _copies(bundle: Bundle, precision: str, to: Path) -> Iterator[tuple[Path, Path]]:
    """Files of the bundle that its graphs in one precision need, and where they go."""
    for file in _files(bundle, precision):
        yield bundle.path / file, to / file
    kept = {file.precision for file in bundle.manifest.graphs[precision].values()}
    for plan in bundle.path.glob("engines/*/*.plan"):
        if plan.stem.rpartition(".")[2] not in kept:
            continue
        if plan.is_file() and sidecar_path(plan).is_file():  # no pipe, which has no end
            for path in (plan, sidecar_path(plan)):
                yield path, to / path.relative_to(bundle.path)


def _files(bundle: Bundle, precision: str) -> list[str]:
    """Listed files that serving reads: neither other precisions nor recordings."""
    manifest = bundle.manifest
    others = manifest.graph_files - {g.file for g in manifest.graphs[precision].values()}
    return [
        name
        for name in manifest.files
        if name not in others and not name.startswith(("reference/", "calibration/"))
    ]


def _write_bundle(bundle: Bundle, precision: str, to: Path) -> None:
    """The manifest of what was copied, with the digests of the copies."""
    graphs = {precision: bundle.manifest.graphs[precision]}
    write_manifest(to, replace(bundle.manifest, graphs=graphs), _files(bundle, precision))
    for name, entry in read_manifest(to).files.items():
        if entry != bundle.manifest.files[name]:
            raise BundleError(
                f"{bundle.path / name} was changed since the bundle was opened here. Start anew"
            )


def _write_graph(
    folder: Path, bundle: Bundle, graph: str, settings: ModelSettings, plan: Path | None
) -> None:
    """A graph's model: its ONNX file, or its engine."""
    name = model_name(str(settings.graphs), graph)
    home = folder / name
    if plan is None:
        spec = bundle.graph(graph, settings.precision).spec
        config = graph_config(name, spec, device=settings.device)
        _copy(bundle.graph_path(graph, settings.precision), home / _VERSION / "model.onnx")
    else:
        sidecar = check_plan(plan, bundle.graph_sha256(graph, settings.precision))
        config = plan_config(name, sidecar.inputs, sidecar.outputs, sidecar.shape_values)
        _copy(plan, home / _VERSION / "model.plan")
    (home / "config.pbtxt").write_text(config, encoding="utf-8")


def _plans(bundle: Bundle, precision: str, engines: str | None) -> dict[str, Path]:
    """The engine of each graph, in one folder of the bundle's ``engines/``."""
    held = sorted(p.name for p in bundle.path.glob("engines/*") if p.is_dir())
    # TensorRT-RTX's engines are for its own library, which Triton has no backend for
    fitting = [n for n in held if n.startswith("tensorrt-") and not n.startswith("tensorrt-rtx")]
    chosen = [n for n in held if n == engines] if engines is not None else fitting
    if len(chosen) != 1 or chosen[0] not in fitting:
        listed = ", ".join(held) or "none"
        raise InputError(
            f"{bundle.path} needs engines of one target of TensorRT to serve; it has {listed}. "
            "Build some with `openvis build --backend tensorrt` on the server's GPU and with its "
            "TensorRT, or choose with --engines FOLDER"
        )
    folder = bundle.path / "engines" / chosen[0]
    return {
        graph: folder / f"{graph}.{bundle.graph(graph, precision).precision}.plan"
        for graph in bundle.graphs
    }


def _copy(source: Path, target: Path) -> None:
    """A file that shares its bytes with the bundle's where the disk can, since neither changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as exc:  # another disk, or one without links
        if not source.is_file():
            raise BundleError(
                f"{source} was changed since the bundle was opened here: it is gone"
            ) from exc
        shutil.copyfile(source, target)


def _is_repository(folder: Path) -> bool:
    """Whether every model in it is one of ours."""
    homes = list(folder.iterdir())
    has_model = any((home / _VERSION / BUNDLE / MANIFEST).is_file() for home in homes)
    return has_model and all(
        {path.name for path in home.iterdir()} == {"config.pbtxt", _VERSION} for home in homes
    )
