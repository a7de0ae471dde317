"""An FP16 graph beside PyTorch FP32: end to end, and given PyTorch's own attention masks.

An attention mask is a decision, mask_logits < 0, and each layer of the query decoder reads the one
that the layer before has made. A bit whose logit is near 0 flips on rounding, the queries that read
it move, more bits flip in the next layer, and at the end the masks are others, although no number
was computed badly. Weights decide how far that goes: with trained ones few logits are near 0, with
random ones thousands may be. So the graph is compared a second time with the masks as inputs:

    end to end     mask_logits_i -> bits_i  -> layer_i+1            rounding, and what it flips
    given masks    PyTorch's       bits_i  -> layer_i+1            rounding alone

The second comparison has closer gates. If it fails, FP16 loses precision or range; if only the
first one does, bits flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from openvis_rt.compare.differences import Difference
from openvis_rt.compare.torch_reference import (
    TRIES,
    GraphRun,
    TorchReference,
    compare_with_torch,
    differences_from_torch,
    differences_of,
    failures,
    typed_inputs,
)
from openvis_rt.errors import ParityError
from openvis_rt.export.fp16.convert import Fp16Graph
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.export.fp16.keeps import GraphView

__all__ = ["attention_masks", "compare_fp16_with_torch", "with_given_masks"]

Array = npt.NDArray[np.generic]

_DECISIONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class _GivenMasks:
    """A comparison with given masks.

    Attributes:
        differences: of every output.
        inputs: of the graph, by name.
        masks: PyTorch's attention masks on these inputs, bool, by the names of their tensors.
    """

    differences: list[Difference]
    inputs: dict[str, Array]
    masks: dict[str, Array]


def compare_fp16_with_torch(
    half: Fp16Graph, wide: onnx.ModelProto, reference: TorchReference
) -> list[Difference]:
    """Run an FP16 graph, as its FP16 emulation, on what PyTorch FP32 has answered.

    Args:
        half: the FP16 graph.
        wide: the FP32 graph that it was made from, which says what PyTorch's attention masks are.
        reference: PyTorch's side.

    Returns:
        of every output the difference end to end; then those with given masks, if the graph has
        attention masks.

    Raises:
        ParityError: an output is outside its gate; the message says whether bits flip or precision
            is lost.
        DependencyError: ONNX Runtime is not installed.
    """
    emulation = fp16_emulation(half.model)
    serialized = emulation.SerializeToString()
    given = _given_masks(half, emulation, wide, reference)
    if given is None:
        return compare_with_torch(serialized, half.spec, reference, "fp16")
    if far := failures(given.differences):
        raise ParityError(
            f"the exported graph {half.spec.name!r} (fp16) does not give PyTorch's numbers even if "
            f"it is given PyTorch's attention masks: {far}. These weights need more range or "
            "precision than FP16 has: export with --precision fp32."
        )
    end_to_end = differences_from_torch(serialized, half.spec, reference, "fp16")
    if far := failures(end_to_end):
        raise ParityError(_flipped(half, emulation, given, far))
    return end_to_end + given.differences


def attention_masks(model: onnx.ModelProto) -> list[str]:
    """The bits that attention reads, by name: decided from floats, on the way to a softmax."""
    view = GraphView(model.graph)
    return [
        node.output[0]
        for node in view.nodes
        if node.op_type in _DECISIONS
        and any(map(view.is_float, node.input))
        and _reaches_a_softmax(view, node.output[0])
    ]


def with_given_masks(model: onnx.ModelProto, masks: Sequence[str]) -> onnx.ModelProto:
    """The graph with attention masks as further inputs; ``model`` is not changed."""
    nodes = [node for node in model.graph.node if node.output[0] not in masks]
    given = [helper.make_tensor_value_info(name, TensorProto.BOOL, None) for name in masks]
    graph = helper.make_graph(
        nodes, model.graph.name, [*model.graph.input, *given], model.graph.output
    )
    graph.initializer.extend(model.graph.initializer)
    return helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )


def _given_masks(
    half: Fp16Graph, emulation: onnx.ModelProto, wide: onnx.ModelProto, reference: TorchReference
) -> _GivenMasks | None:
    """The comparison with given masks, on the first input where the FP32 graph is PyTorch's equal.

    None for a graph without attention masks; or without such an input, since then nobody knows
    what PyTorch's masks are.
    """
    names = attention_masks(wide)
    outputs = [t.name for t in half.spec.outputs]
    if not names:
        return None
    fp32 = GraphRun(_with_outputs(wide, names))
    for seed in range(TRIES):
        inputs, wanted = reference.answer(seed)
        found = fp32([*outputs, *names], typed_inputs(reference.spec, inputs))
        masks = dict(zip(names, found[len(outputs) :], strict=True))
        if failures(differences_of(reference.spec, found[: len(outputs)], wanted, "fp32")):
            continue
        given = typed_inputs(half.spec, inputs)
        run = GraphRun(with_given_masks(emulation, names).SerializeToString())
        found = run(outputs, given | masks)
        differences = differences_of(half.spec, found, wanted, "fp16", given_masks=True)
        return _GivenMasks(differences, given, masks)
    return None


def _flipped(half: Fp16Graph, emulation: onnx.ModelProto, given: _GivenMasks, far: str) -> str:
    """What is wrong if bits flip, for people."""
    run = GraphRun(_with_outputs(emulation, list(given.masks)))
    found = run(list(given.masks), given.inputs)
    pairs = list(zip(found, given.masks.values(), strict=True))
    share = sum(int((a != b).sum()) for a, b in pairs) / sum(b.size for _, b in pairs)
    worst = min(given.differences, key=lambda d: d.sqnr)
    return (
        f"the exported graph {half.spec.name!r} (fp16) does not give PyTorch's numbers on any of "
        f"{TRIES} inputs: {far}. The cause is flipped bits of attention masks, not a loss of "
        f"precision: given PyTorch's masks, its worst output is {worst.output} with "
        f"{worst.sqnr:.0f} dB, but with these weights {share:.1%} of the bits are so near the edge "
        "that FP16's rounding flips them. Random weights do this, trained ones hardly. "
        "--no-verify writes FP16 all the same, and `openvis eval` says what it costs; "
        "--precision fp32 leaves it out."
    )


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """Serialised, with further outputs."""
    more = onnx.ModelProto()
    more.CopyFrom(model)
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    serialized: bytes = more.SerializeToString()
    return serialized


def _reaches_a_softmax(view: GraphView, tensor: str) -> bool:
    """Whether a softmax reads what is made of a tensor, with no product between them."""
    known, queue = {tensor}, [tensor]
    while queue:
        for index in view.consumers.get(queue.pop(), []):
            node = view.nodes[index]
            if node.op_type == "Softmax":
                return True
            if node.op_type not in _PRODUCTS:
                queue += [name for name in node.output if name not in known]
                known.update(node.output)
    return False
