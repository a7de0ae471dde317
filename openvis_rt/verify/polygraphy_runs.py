"""The same comparison by Polygraphy, and files that its own commands take up from there.

    DIR/<graph>/<precision>/inputs.json    feed of the graph: its first recorded call
    DIR/<graph>/<precision>/outputs.json   what the runners gave for it, by the runner's name

``polygraphy run GRAPH --onnxrt --load-inputs ... --load-outputs ...``, ``polygraphy debug reduce``
and ``polygraphy surgeon extract`` work on them as they are; docs/verify.md shows that on a fault.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.plan import check_plan
from openvis_rt.errors import BackendError, DependencyError, OpenVISError
from openvis_rt.files import output_errors
from openvis_rt.verify.checks import gates_of
from openvis_rt.verify.reference import Reference

__all__ = ["PolygraphyResult", "run_polygraphy"]

_TRUSTED = "fp32"


@dataclass(frozen=True)
class PolygraphyResult:
    """What Polygraphy's comparator says of one output.

    Attributes:
        graph, precision, runner, output: which.
        snr: worst signal-to-noise ratio over the calls, dB; infinite is equality.
        gate: the least that passes, dB.
    """

    graph: str
    precision: str
    runner: str
    output: str
    snr: float
    gate: float

    @property
    def passed(self) -> bool:
        """Whether the ratio is within its gate."""
        return self.snr >= self.gate


def run_polygraphy(
    bundle: Bundle,
    reference: Reference,
    folder: Path,
    precisions: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[PolygraphyResult]:
    """Every graph in ONNX Runtime, and in TensorRT where it has engines, against its FP32 graph.

    Args:
        bundle: the bundle; it needs its FP32 graphs.
        reference: whose calls give the inputs.
        folder: where the files are written; it may exist.
        precisions: of the bundle; None for all.
        progress: told what is run.

    Returns:
        a result for each floating-point output of each graph, precision and runner.

    Raises:
        DependencyError: polygraphy is not installed.
        OutputError: the folder cannot be written.
        BackendError: a runner failed.
    """
    try:
        from polygraphy.comparator import Comparator, RunResults
        from polygraphy.json import save_json
        from polygraphy.logger import G_LOGGER
    except ImportError as exc:
        raise DependencyError(exc.name or "polygraphy", "verify") from exc
    found: list[PolygraphyResult] = []
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # stdout is data
        for graph in bundle.graphs:
            trusted: Any = None
            for precision in dict.fromkeys((_TRUSTED, *(precisions or bundle.manifest.graphs))):
                progress(f"polygraphy: {graph}, {precision}")
                place = folder / graph / precision
                with output_errors(place):
                    place.mkdir(parents=True, exist_ok=True)
                feeds = _feeds(bundle, reference, graph, precision)
                runners = list(_runners(bundle, graph, precision))
                try:
                    results = Comparator.run(runners, data_loader=feeds)
                except Exception as exc:  # its own, ONNX Runtime's or TensorRT's
                    raise BackendError(
                        f"polygraphy could not run {graph} ({precision}): {exc}"
                    ) from exc
                save_json(feeds[:1], str(place / "inputs.json"))
                first = RunResults([(name, calls[:1]) for name, calls in results.items()])
                first.save(str(place / "outputs.json"))
                trusted = trusted or next(iter(results.values()))
                for name, iterations in results.items():
                    pair = RunResults([(_TRUSTED, trusted), (name, iterations)])
                    found += _compared(bundle, graph, precision, name, pair)
    return found


def _feeds(
    bundle: Bundle, reference: Reference, graph: str, precision: str
) -> list[dict[str, Any]]:
    """Inputs of the recorded calls of a graph, in the types that it has in this precision.

    Inputs that have defaults are left to them, as Polygraphy leaves them.
    """
    types = {t.name: t.dtype for t in bundle.graph(graph, precision).spec.inputs}
    return [
        {
            name: np.ascontiguousarray(value.astype(types[name]))
            for name, value in reference.inputs(call).items()
            if name in types
        }
        for call in reference.record.calls
        if call.graph == graph
    ]


def _runners(bundle: Bundle, graph: str, precision: str) -> Iterator[Any]:
    """ONNX Runtime on the graph, and TensorRT on each of its engines that fits this machine."""
    import onnxruntime
    from polygraphy.backend.onnxrt import OnnxrtRunner

    def session() -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors come as exceptions
        return onnxruntime.InferenceSession(
            bundle.read_graph(graph, precision),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["WeightBiasQuantization"],  # wrong for INT8 with FP16
        )

    yield OnnxrtRunner(session, name=f"onnxruntime {precision}")
    plans = sorted(bundle.path.glob(f"engines/*/{graph}.{precision}.plan"))
    for plan in plans if _has_tensorrt() else ():
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        try:
            made = check_plan(plan, bundle.graph_sha256(graph, precision))
        except OpenVISError:
            continue
        if made.backend == "tensorrt":
            engine = EngineFromBytes(BytesFromPath(str(plan)))
            yield TrtRunner(engine, name=f"tensorrt {plan.parent.name} {precision}")


def _has_tensorrt() -> bool:
    return importlib.util.find_spec("tensorrt") is not None


def _compared(
    bundle: Bundle, graph: str, precision: str, runner: str, pair: Any
) -> Iterator[PolygraphyResult]:
    """Polygraphy's signal-to-noise ratio of each floating-point output, the worst of all calls."""
    from polygraphy.comparator import Comparator, SnrCompareFunc

    file = bundle.graph(graph, precision)
    gates = gates_of(bundle, file.precision)
    names = [t.name for t in file.spec.outputs if t.dtype.startswith("float") and t.name in gates]
    if not names:
        return
    thresholds = {"": -float("inf"), **{name: gates[name] for name in names}}

    def partner(name: str, _index: int, _other: Any) -> list[str]:
        return [name] if name in names else []  # it cannot subtract bits

    metric = SnrCompareFunc(thresholds, find_output_func=partner)
    accuracy = Comparator.compare_accuracy(pair, compare_func=metric)
    [iterations] = (found for result in accuracy for found in result.values())  # of the one pair
    for name in names:
        ratios = [float(outputs[name].snr) for outputs in iterations]
        yield PolygraphyResult(graph, precision, runner, name, min(ratios), gates[name])
