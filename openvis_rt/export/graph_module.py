"""One graph of a network as a module whose every input is an explicit tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openvis_rt.models.clip import picture_side
from openvis_rt.models.masks import Masks
from openvis_rt.models.network import Network
from openvis_rt.models.resize import PillowResize, resize_to_clip
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

__all__ = ["GraphModule", "example_inputs", "graph_modules"]

_PICTURES = ("frames", "pictures")  # inputs that a graph may resize
_TORCH_TYPES = {
    "uint8": torch.uint8,
    "bool": torch.bool,
    "int64": torch.int64,
    "float32": torch.float32,
}
_EXAMPLE_LENGTH = 3  # of dynamic axes while tracing; 0 and 1 would be taken for constants


class GraphModule(nn.Module):
    """A graph of a network: what is traced, and what its ONNX file is compared with.

    Args:
        model: the network, whose method of the graph's name answers.
        spec: the graph; its inputs and outputs are given and returned in this order.
        resize: brings frames of the source's size to the network's; None where the host does.
    """

    def __init__(self, model: Network, spec: GraphSpec, resize: PillowResize | None = None) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.resize = nn.Identity() if resize is None else resize

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's inputs by name to its outputs in order."""
        given = {
            name: self.resize(tensor) if name in _PICTURES else tensor
            for name, tensor in inputs.items()
        }
        answer = getattr(self.model, self.spec.name)
        outputs: dict[str, Tensor] = answer(**given)
        return tuple(outputs[tensor.name] for tensor in self.spec.outputs)


def graph_modules(
    model: Network,
    padded: tuple[int, int],
    size: tuple[int, int],
    source: tuple[int, int] | None,
) -> dict[str, nn.Module]:
    """One module for each graph: what is traced, and what its ONNX file is compared with.

    Args:
        model: with its weights.
        padded, size: of the network's frame, (H, W) in pixels, with and without padding.
        source: (H, W) of the source's frames where the graphs resize.
    """
    modules: dict[str, nn.Module] = {"masks": Masks(padded, size, source or size)}
    for name, spec in model.graphs.items():
        if name != "masks":
            modules[name] = GraphModule(model, spec, _resize_of(model, spec, size, source))
    return modules


def _resize_of(
    model: Network, spec: GraphSpec, size: tuple[int, int], source: tuple[int, int] | None
) -> PillowResize | None:
    names = {tensor.name for tensor in spec.inputs}
    if source is not None and "frames" in names:
        return PillowResize(source, size)
    if source is not None and "pictures" in names:
        return resize_to_clip(source, picture_side(model.clip_model))
    return None


def example_inputs(spec: GraphSpec) -> dict[str, Tensor]:
    """Zeros of the right shapes and types for tracing, by input name."""
    return {tensor.name: _example(tensor) for tensor in spec.inputs}


def _example(tensor: TensorSpec) -> Tensor:
    shape = [d if isinstance(d, int) else _EXAMPLE_LENGTH for d in tensor.shape]
    return torch.zeros(shape, dtype=_TORCH_TYPES[tensor.dtype])
