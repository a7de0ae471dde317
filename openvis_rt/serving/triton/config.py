"""``config.pbtxt`` of each model of the repository, from the bundle's specs."""

from __future__ import annotations

from collections.abc import Iterable

from openvis_rt.serving.triton.settings import ModelSettings
from openvis_rt.serving.triton.text_format import Message, Word, written
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

__all__ = ["KINDS", "graph_config", "model_config", "plan_config"]

KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
"""By device, where Triton puts a model's instances."""

_TYPES = {
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}
_FRAME = (
    (("name", "frame"), ("data_type", Word("TYPE_UINT8")), ("dims", [-1, -1, 3])),
    (("name", "encoded"), ("data_type", Word("TYPE_UINT8")), ("dims", [-1])),
)
_FLAGS = {
    "START": "CONTROL_SEQUENCE_START",
    "END": "CONTROL_SEQUENCE_END",
    "READY": "CONTROL_SEQUENCE_READY",
}


def model_config(name: str, settings: ModelSettings, instances: int = 1) -> str:
    """Of the stateful model, which tracks.

    Args:
        name: of the model.
        settings: see its class.
        instances: processes, each with trackers, and where there are no models of the graphs with
            graphs, of its own.
    """
    batching = (
        ("max_sequence_idle_microseconds", round(settings.idle_seconds * 1e6)),
        ("oldest", (("max_candidate_sequences", settings.sequences),)),
        ("control_input", [*map(_flag, _FLAGS.items()), _correlation_id()]),
    )
    return written(
        (
            ("name", name),
            ("backend", "python"),
            ("max_batch_size", 0),
            ("input", [(*tensor, ("optional", True)) for tensor in _FRAME]),
            ("output", [(("name", "results"), ("data_type", Word("TYPE_UINT8")), ("dims", [-1]))]),
            ("sequence_batching", batching),
            _instances(instances, settings.device),
            (
                "parameters",
                [
                    (("key", key), ("value", (("string_value", value),)))
                    for key, value in settings.to_parameters().items()
                ],
            ),
        )
    )


def graph_config(
    name: str, spec: GraphSpec, *, device: str = "auto", instances: int = 1, sizes: bool = True
) -> str:
    """Of a graph that ONNX Runtime runs.

    Args:
        name: of the model.
        spec: the graph's tensors.
        device: of :data:`KINDS`.
        instances: of the graph, which share its calls.
        sizes: list the inputs with defaults, which hold sizes, as well.
    """
    inputs = (*spec.inputs, *(spec.overridable if sizes else ()))
    return written(
        (
            ("name", name),
            ("platform", "onnxruntime_onnx"),
            ("max_batch_size", 0),
            ("input", [_tensor(tensor) for tensor in inputs]),
            ("output", [_tensor(_unpacked(tensor)) for tensor in spec.outputs]),
            _instances(instances, device),
        )
    )


def plan_config(
    name: str,
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    sizes: Iterable[str],
    *,
    instances: int = 1,
) -> str:
    """Of a TensorRT engine.

    Args:
        name: of the model.
        inputs, outputs: of the engine, from its sidecar; a size that is no number is dynamic.
        sizes: names of the inputs whose values are sizes: the engine's shape tensors.
        instances: of the engine on each GPU.
    """
    shape_tensors = set(sizes)
    return written(
        (
            ("name", name),
            ("platform", "tensorrt_plan"),
            ("max_batch_size", 0),
            (
                "input",
                [
                    (
                        *_tensor(t),
                        *((("is_shape_tensor", True),) if t.name in shape_tensors else ()),
                    )
                    for t in inputs
                ],
            ),
            ("output", [_tensor(tensor) for tensor in outputs]),
            _instances(instances, "cuda"),
        )
    )


def _tensor(tensor: TensorSpec) -> Message:
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return ("name", tensor.name), ("data_type", Word(_TYPES[tensor.dtype])), ("dims", dims)


def _unpacked(tensor: TensorSpec) -> TensorSpec:
    """As the ONNX file has it: masks are bool there, and sessions of our own pack them."""
    if tensor.name != "masks":
        return tensor
    return TensorSpec(tensor.name, "bool", (*tensor.shape[:-1], "Ws"))


def _instances(count: int, device: str) -> tuple[str, list[Message]]:
    return "instance_group", [(("count", count), ("kind", Word(KINDS[device])))]


def _flag(named: tuple[str, str]) -> Message:
    name, kind = named
    control = (("kind", Word(kind)), ("int32_false_true", [0, 1]))
    return ("name", name), ("control", [control])


def _correlation_id() -> Message:
    control = (("kind", Word("CONTROL_SEQUENCE_CORRID")), ("data_type", Word("TYPE_UINT64")))
    return ("name", "CORRID"), ("control", [control])
