"""Record a reference: PyTorch's answers to every graph at every size, and to a short video.

The video is generated: a few objects that move. With the video come tokens that are hard to follow
(:func:`openvis_rt.verify.host.hard_tokens`), since a tracker with a wrong parameter may well follow
ten easy frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.recorded import RECORD
from openvis_rt.bundle.recorded_forms import (
    Call,
    Form,
    Record,
    Stored,
    Value,
    packed,
    sample_of,
)
from openvis_rt.compare.differences import GATES
from openvis_rt.errors import InputError
from openvis_rt.export.bundle import tool_versions
from openvis_rt.models.network import Network
from openvis_rt.runtime.classifier import Classifier, closed_classifier
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.preprocessing import clip_picture
from openvis_rt.runtime.text import ClipTokenizer, TextEmbedder
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.systems.graphs import TensorSpec, masks_per_run
from openvis_rt.verify.host import detections_of, hard_orders, hard_tokens, orders_of
from openvis_rt.verify.reference import Reference, file_names, write_reference
from openvis_rt.verify.runner import GraphRunner
from openvis_rt.verify.sequence import check_video
from openvis_rt.verify.stages import check_calls
from openvis_rt.verify.torch_backend import TorchBackend
from openvis_rt.vocabulary import Vocabulary

__all__ = ["add_reference", "measured_gates", "record_reference"]

Array = npt.NDArray[np.generic]
Image8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Progress = Callable[[str, int, int | None], None]

_NAMES = ("disc", "box, crate", "triangle", "person", "sky")
_FRAMES = 10  # one more than CLIP-VIS remembers
_FPS = 5  # of the generated video: what moves, moves by several pixels a frame
_EVERY_LENGTH = 5  # of longer windows only four lengths are recorded
_MANY_CLASSES = 256  # of the large K
_MASKED = 16  # queries whose masks are kept, or given where a graph takes mask logits
_SHOWN = 12  # instances of a frame in the results
_WIDE = 64  # numbers of a token; narrower outputs, such as areas, are kept as they are
_SEED = 20
_FEWER = 0.2  # of the share of ids, and of the IoU, that was measured
_MARGIN = 15.0  # dB below what was measured: other machines round and flip other bits


def add_reference(bundle: Bundle, model: Network, progress: Progress = lambda *_: None) -> Bundle:
    """Record a reference into a bundle that has none.

    Args:
        bundle: of this very model.
        model: with its weights.
        progress: told before each step: what, steps done, steps in all.

    Returns:
        the bundle with its reference.

    Raises:
        InputError: the bundle has a reference.
        OutputError: another process changes the bundle, or it cannot be written.
    """
    if RECORD in bundle.manifest.files:
        raise InputError(f"{bundle.path} has a recorded reference already")
    reference = record_reference(bundle, model, progress)
    progress("measuring how close each precision is", 0, None)
    gates = {p: measured_gates(bundle, p, reference) for p in bundle.manifest.graphs}
    names = file_names(len(reference.frames))
    with bundle.adding() as change:
        change.manifest = replace(change.manifest, gates=gates)
        write_reference({name: change.new_file(name) for name in names}, reference)
    return Bundle.open(bundle.path, verify=False)


def measured_gates(bundle: Bundle, precision: str, reference: Reference) -> dict[str, float]:
    """Gates for these very weights, by what ONNX Runtime reaches on the reference.

    The general gates of FP32 outputs leave little room. Those of FP16 have to let every model pass;
    most are far closer, and a fault that costs 20 dB should not hide in the difference: so they are
    15 dB below what is reached. Of the video it is the other way round: where tokens are so alike
    that rounding alone decides the tracks, as with some random weights, the gate is lower.
    """
    from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime

    gates = dict(GATES[precision])
    for check in check_video("", bundle, OnnxRuntime("cpu"), precision, reference):
        name = "video masks" if check.output == "masks" else "video ids"
        gates[name] = max(0.0, min(gates[name], round(check.value - _FEWER, 2)))
    if precision == "fp32":
        return gates
    reached: dict[str, float] = {}
    for check in check_calls("", bundle, OnnxRuntime("cpu"), precision, reference):
        if check.measure == "SQNR dB" and bundle.graph(check.stage, precision).precision != "fp32":
            reached[check.output] = min(check.value, reached.get(check.output, math.inf))
    for output, ratio in reached.items():
        if math.isfinite(ratio):
            gates[output] = max(gates[output], math.floor(ratio - _MARGIN))
    return gates


def record_reference(
    bundle: Bundle, model: Network, progress: Progress = lambda *_: None
) -> Reference:
    """What PyTorch answers for a bundle; arguments as for :func:`add_reference`."""
    recording = _Recording(bundle, model)
    steps = recording.steps()
    for done, (name, step) in enumerate(steps.items()):
        progress(f"recording PyTorch's answers: {name}", done, len(steps))
        step()
    return recording.reference()


class _Recording:
    """A reference in the making; ``steps`` are taken in order.

    Args:
        bundle: whose graphs answer.
        model: that they were exported from.
    """

    def __init__(self, bundle: Bundle, model: Network) -> None:
        precision = next(iter(bundle.manifest.graphs))
        self.bundle, self.window = bundle, bundle.manifest.window_length
        self.specs = {name: bundle.graph(name, precision).spec for name in bundle.graphs}
        self._recording, self._outputs = False, list[dict[str, Floats]]()
        self._backend = TorchBackend(model, device="cpu", watch=self._watch)
        self._run = GraphRunner(bundle, self._backend, precision)
        height, width = (int(d) for d in self.specs["propose"].inputs[0].shape[1:3])
        count = max(_FRAMES, self.window)
        made = sample_frames(width=width, height=height, fps=_FPS, seconds=count / _FPS)
        self.frames = [image for image, _ in made]
        self.arrays: dict[str, Array] = {}
        self.calls: list[Call] = []
        self._known: dict[int, dict[str, Array]] = {}  # outputs of the first frames by their number
        self._classifier = Classifier((), [], None)
        self._results: list[FrameResult] = []
        self._detected: list[tuple[int, int, float]] = []

    def steps(self) -> dict[str, Callable[[], None]]:
        """What is recorded, one after the other, by its name."""
        every = {
            "class names": self._record_names,
            "text": self._record_text,
            "embed": self._record_embed,
            "propose": self._record_propose,
            "classify": self._record_classify,
            "masks": self._record_masks,
            "a video": self._record_video,
            "the tracker": self._record_tracker,
        }
        missing = {"text", "embed"} - set(self.specs)
        return {name: step for name, step in every.items() if name not in missing}

    def reference(self) -> Reference:
        """What was recorded."""
        self._run.close()
        self._backend.close()
        manifest = self.bundle.manifest
        record = Record(
            checkpoint=manifest.checkpoint,
            tools=tool_versions(),
            tracker=manifest.tracker,
            score=manifest.score,
            prompts=manifest.prompts,
            detections=manifest.detections,
            names=self._classifier.names,
            rows=self._classifier.rows,
            frames=len(self.frames),
            calls=tuple(self.calls),
            detected=self._detected,
        )
        return Reference(self.frames, self.arrays, record, self._results, "computed here")

    # what the graphs answer

    def _record_names(self) -> None:
        """The classifier of the video: CLIP's rows of the names, or random ones without CLIP."""
        inputs = {t.name: t for t in self.specs["classify"].inputs}
        words = Vocabulary.of(_NAMES)
        if "text_embeddings" not in inputs:
            scores = next(t for t in self.specs["classify"].outputs if t.name == "class_scores")
            count = int(scores.shape[-1]) - 1
            words = Vocabulary.of([f"class {number}" for number in range(1, count + 1)])
            self._classifier = closed_classifier(words, count, self.bundle.manifest.variant)
            return
        if "text" in self.specs:
            embedder = TextEmbedder(
                self.bundle,
                "fp32" if "fp32" in self.bundle.manifest.graphs else "fp16",
                lambda: self._backend.open(self.bundle, "text", "fp32"),
                cached=False,
            )
            rows = embedder(words)
        else:
            rows = _unit_rows(len(words.phrases), int(inputs["text_embeddings"].shape[-1]))
        self.arrays["embeddings"] = rows
        self._classifier = Classifier(words.names, words.rows_of_class, rows)

    def _record_text(self) -> None:
        tokenizer = ClipTokenizer(self.bundle)
        tokens = tokenizer.batch(list(Vocabulary.of(_NAMES).phrases))
        self.arrays["tokens"] = tokens
        for count in (1, len(tokens)):
            inputs = {"tokens": Value("whole", "tokens", "int64", (count, *tokens.shape[1:]))}
            self._call("text", f"B={count}", inputs)

    def _record_embed(self) -> None:
        [tensor] = self.specs["embed"].inputs
        height = tensor.shape[1]
        same = tensor.shape[1:3] == self.specs["propose"].inputs[0].shape[1:3]
        if not same:
            taken = self.frames[: self.window]
            self.arrays["pictures"] = np.stack([clip_picture(f, int(height)) for f in taken])
        for length in self._lengths():
            form: Form = "frames" if same else "whole"
            value = _value(form, "" if same else "pictures", tensor, length)
            found = self._call("embed", f"T={length}", {tensor.name: value})
            self._known.setdefault(length, {}).update(found)

    def _record_propose(self) -> None:
        [tensor] = self.specs["propose"].inputs
        for length in self._lengths():
            for start in self._starts(length):
                value = _value("frames", "", tensor, length, start)
                found = self._call("propose", f"T={length}", {tensor.name: value})
                if start == 0:
                    self._known.setdefault(length, {}).update(found)

    def _record_classify(self) -> None:
        for length in sorted({1, self.window}):
            inputs = {
                tensor.name: self._given(tensor, length)
                for tensor in self.specs["classify"].inputs
                if tensor.name != "text_embeddings"
            }
            rows = next(
                (t for t in self.specs["classify"].inputs if t.name == "text_embeddings"), None
            )
            if rows is None:
                self._call("classify", f"T={length}", inputs)
                continue
            own = sum(self._classifier.rows)
            for count in (1, own, _MANY_CLASSES) if length == 1 else (own,):
                tiled = Value("tiled", "embeddings", "float32", (count, int(rows.shape[-1])))
                self._call("classify", f"T={length} K={count}", {**inputs, rows.name: tiled})

    def _record_masks(self) -> None:
        spec, most = self.specs["masks"], masks_per_run(self.window)
        logits = self._given(spec.inputs[0], self.window, most)
        rule = self.bundle.manifest.preprocess
        sizes: dict[str, Value] = {}
        if rule.source_size is None:
            self.arrays["picture_size"] = np.array(rule.network_size, np.int64)
            self.arrays["frame_size"] = np.array(self.frames[0].shape[:2], np.int64)
            sizes = {t.name: Value("whole", t.name, "int64", (2,)) for t in spec.overridable}
        self.arrays["selected"] = np.random.default_rng(_SEED).permutation(most)
        for count in range(1, most + 1):
            selected = Value("whole", "selected", "int64", (count,))
            inputs = {"mask_logits": logits, "selected": selected, **sizes}
            self._call("masks", f"n={count}", inputs)

    # what the host makes of it

    def _record_video(self) -> None:
        """Results of the sequence by the runtime, with PyTorch in the place of the graphs."""
        self._run.close()
        inputs = {t.name for t in self.specs["classify"].inputs}
        lacks_embed = "image_embeddings" in inputs and "embed" not in self.specs
        given = self._image_embeddings() if lacks_embed else None
        if given is not None:
            self.arrays["image_embeddings"] = given
        self._recording = True
        with Pipeline.open(
            self.bundle,
            vocabulary=self._classifier.names,
            classifier=self._classifier,
            image_embeddings=given,
            backend=self._backend,
            precision=next(iter(self.bundle.manifest.graphs)),  # PyTorch's is FP32 in any case
            selection=Selection(threshold=0.0, limit=_SHOWN),
        ) as pipeline:
            self._results = list(pipeline.stream(self.frames))

    def _record_tracker(self) -> None:
        """What the host makes of the recorded outputs, and of tokens that are hard to follow."""
        orders = orders_of(self.bundle, self._outputs)
        rows = self._classifier.rows
        self._detected = detections_of(self.bundle, self._outputs, orders, rows)
        hard = hard_tokens(self.bundle, _SEED)
        self.arrays["order"] = orders
        self.arrays["hard_order"] = hard_orders(self.bundle, hard)
        self.arrays |= {f"hard/{name}": value.astype(np.float16) for name, value in hard.items()}
        for number, output in enumerate(self._outputs):
            self.arrays |= {f"output/{number}/{name}": value for name, value in output.items()}

    def _watch(self, graph: str, name: str, value: Array) -> None:
        """Keep what the host reads of each window of the video, rounded where it is wide."""
        if not self._recording or graph not in ("propose", "classify"):
            return
        if not self._outputs or name in self._outputs[-1]:
            self._outputs.append({})
        floats = value.astype(np.float32)
        self._outputs[-1][name] = _half(floats) if floats.shape[-1] >= _WIDE else floats

    # helpers

    def _lengths(self) -> list[int]:
        """Lengths of windows that are recorded: every one, of long windows four."""
        most = self.window
        return list(range(1, most + 1)) if most <= _EVERY_LENGTH else [1, 2, most // 2, most]

    def _starts(self, length: int) -> list[int]:
        """First frames of the windows of one length: other pictures for the same call."""
        last = len(self.frames) - length
        return sorted({0, last // 2, last} if self.window == 1 else {0, last})

    def _given(self, tensor: TensorSpec, length: int, rows: int = _MASKED) -> Value:
        """An input of `classify` or `masks` for the first frames, as the graphs before gave it."""
        if tensor.name == "frames":
            return _value("frames", "", tensor, length)
        key = f"{tensor.name}/{length}"
        if tensor.name == "image_embeddings" and "embed" not in self.specs:
            value: Array = self._image_embeddings()[:length]
        else:
            value = self._known[length][tensor.name]
        if tensor.name == "mask_logits":  # large: the first queries alone
            key = f"{key}/{rows}"
            self.arrays[key] = value[:rows].astype(np.float16)
            return Value("head", key, "float32", value.shape)
        if value.dtype == np.bool_:
            self.arrays[key] = packed(value)
            return Value("bits", key, "bool", value.shape)
        self.arrays[key] = value.astype(np.float16)
        return Value("whole", key, "float32", value.shape)

    def _image_embeddings(self) -> Floats:
        """Image embeddings of every frame, for a model without the CLIP that makes them."""
        inputs = {t.name: t for t in self.specs["classify"].inputs}
        return _unit_rows(len(self.frames), int(inputs["image_embeddings"].shape[-1]))

    def _call(self, graph: str, point: str, inputs: dict[str, Value]) -> dict[str, Array]:
        """Run a graph, keep its outputs, and return them."""
        stored = Stored(self.frames, self.arrays)
        found = self._run(graph, {name: stored.value(value) for name, value in inputs.items()})
        number, masks = len(self.calls), None
        outputs = {name: self._kept(f"call/{number}/{name}", v) for name, v in found.items()}
        if "mask_logits" in found:
            logits = np.asarray(found["mask_logits"][:_MASKED], np.float32)
            masks = self._kept(f"call/{number}/masks", logits > 0)
        self.calls.append(Call(graph, point, inputs, outputs, masks))
        return found

    def _kept(self, key: str, value: Array) -> Value:
        """Put an output among the arrays: bits, a sample of many numbers, or all of few."""
        shape, dtype = value.shape, str(value.dtype)
        if dtype == "uint8":  # masks, which are packed already
            self.arrays[key] = value
            return Value("whole", key, dtype, shape)
        if dtype == "bool":
            self.arrays[key] = packed(value)
            return Value("bits", key, dtype, shape)
        kept = sample_of(value)
        whole = kept.size == value.size
        self.arrays[key] = value if whole else kept
        return Value("whole" if whole else "sample", key, dtype, shape)


def _value(form: Form, key: str, tensor: TensorSpec, length: int, start: int = 0) -> Value:
    """An input of ``length`` frames, with its other axes as the graph has them."""
    shape = (length, *(int(d) for d in tensor.shape[1:]))
    return Value(form, key, tensor.dtype, shape, start)


def _unit_rows(count: int, width: int) -> Floats:
    rows = np.random.default_rng(_SEED).standard_normal((count, width), np.float32)
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _half(value: Floats) -> Floats:
    return value.astype(np.float16).astype(np.float32)
