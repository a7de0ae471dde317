"""In which types an engine computes: its layers counted, and the one word for it.

Layers are counted as ``{layer type: {type: number}}``, from either of

    network      the parsed network before any fusion; being strongly typed, it fixes every type
    inspector    the engine inspector's JSON of the built engine; needs a GPU that loads it, and
                 names layers as it likes: a ``correlation`` is a convolution, and what was fused
                 into ``kgen`` or ``runtime_fusion`` no name tells. A hint, and no proof

The type of a convolution or of a matrix product is that of its operands, which is what it computes
in; in a network whose operands are dequantised for it that is INT8, as the compiler fuses them. The
type of any other layer is that of its output.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from openvis_rt.engines.api import Named, Network
from openvis_rt.systems.graphs import INT8, INT8_FP32

__all__ = [
    "Layers",
    "has_heavy_layers",
    "inspector_layers",
    "network_layers",
    "precision_of_layers",
    "type_name",
]

Layers = dict[str, dict[str, int]]

_HEAVY = re.compile(
    "conv|correlation|gemm|matrix_?multiply|matmul|einsum|attention|mha", re.IGNORECASE
)
_TYPES = {
    **dict.fromkeys(("float", "fp32", "float32"), "float32"),
    **dict.fromkeys(("half", "fp16", "float16"), "float16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **{name: name for name in ("fp8", "int8", "int4", "fp4", "uint8", "bool", "int32", "int64")},
}
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # the widest first


def precision_of_layers(layers: Layers) -> str:
    """One word for the types of an engine's layers: ``fp32``, ``fp16``, ``bf16`` or an INT8 one.

    The precision in which most convolutions and matrix products compute, and at a tie the wider
    one: a single Cast does not make a network FP16. A network without any of these has the
    narrowest floating-point type that occurs. Where any of them is INT8, which is so only where it
    was quantised on purpose, the others decide between ``int8``, with FP16, and ``int8-fp32``.
    """
    heavy = Counter[str]()
    for kind, counts in layers.items():
        if _HEAVY.search(kind):
            heavy.update(counts)
    rest = _float_precision(layers, {d: n for d, n in heavy.items() if d in _PRECISIONS})
    if heavy["int8"]:
        return INT8_FP32 if rest == "fp32" else INT8
    return rest


def _float_precision(layers: Layers, heavy: dict[str, int]) -> str:
    """The precision by numbers of heavy layers in each floating-point type."""
    if heavy:
        most = max(heavy.values())
        return next(name for dtype, name in _PRECISIONS.items() if heavy.get(dtype) == most)
    found = {dtype for counts in layers.values() for dtype in counts}
    narrow = [name for dtype, name in _PRECISIONS.items() if dtype in found]
    return narrow[-1] if narrow else "fp32"


def has_heavy_layers(layers: Layers) -> bool:
    """Whether convolutions or matrix products are among them, under names that tell so."""
    return any(_HEAVY.search(kind) for kind in layers)


def type_name(dtype: Named) -> str:
    """The name that numpy has for a TensorRT ``DataType``."""
    name = str(dtype.name).lower()
    return _TYPES.get(name, name)


def network_layers(network: Network) -> Layers:
    """Count the layers of a parsed ``INetworkDefinition``."""
    pairs, dequantised = [], set[str]()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if not layer.num_outputs:
            continue  # an assertion
        kind = str(layer.type.name)
        if kind == "DEQUANTIZE":
            dequantised.add(layer.get_output(0).name)
        tensor = layer.get_input(0) if _HEAVY.search(kind) else layer.get_output(0)
        is_int8 = _HEAVY.search(kind) and tensor.name in dequantised
        pairs.append((kind, "int8" if is_int8 else type_name(tensor.dtype)))
    return _counted(pairs)


def inspector_layers(text: str) -> Layers:
    """Count the layers of ``EngineInspector.get_engine_information(LayerInformationFormat.JSON)``.

    TensorRT 10 writes each tensor's type as part of ``Format/Datatype``, 11 and RTX as a field of
    its own. Layers of which no type is told are left out; so nothing is found where the engine was
    built with layer names only, or is no JSON at all.
    """
    try:
        entries = json.loads(text)["Layers"]
    except (KeyError, TypeError, ValueError):
        return {}
    pairs = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        kind = str(entry.get("LayerType", ""))
        sides = ("Inputs", "Outputs") if _HEAVY.search(kind) else ("Outputs", "Inputs")
        tensors = [t for side in sides for t in entry.get(side) or () if isinstance(t, dict)]
        dtype = next(filter(None, map(_tensor_type, tensors)), None)
        if kind and dtype:
            pairs.append((kind, dtype))
    return _counted(pairs)


def _tensor_type(entry: dict[str, Any]) -> str | None:
    """The type that an inspector's tensor names, such as FP16 in 'Row major linear FP16 format'."""
    for key, value in entry.items():
        if key.lower() in ("datatype", "format/datatype"):
            words = re.findall(r"\w+", str(value).lower())
            return next((_TYPES[word] for word in words if word in _TYPES), None)
    return None


def _counted(pairs: Iterable[tuple[str, str]]) -> Layers:
    layers: Layers = {}
    for (kind, dtype), number in sorted(Counter(pairs).items()):
        layers.setdefault(kind, {})[dtype] = number
    return layers
