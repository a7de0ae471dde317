"""The stateful model `openvis`, as Triton's python backend calls it: frames in, instances out.

    frame     uint8 [H, W, 3], RGB       or       encoded   uint8 [bytes], a JPEG or PNG
    results   uint8 [bytes]: UTF-8, a line of JSON for each frame whose result is known now, as in
              frames.jsonl of `openvis run`: ids, names, scores, boxes, masks as run lengths
    START, END, READY, CORRID            Triton's controls; a client sets its sequence options

A request with neither frame only ends its sequence. Strings travel as bytes because the tensors of
strings need what :mod:`.tensors` is there to avoid.

The file ``model.py`` of the repository imports this class under the name that Triton looks for.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from openvis_rt.bundle.contract import LARGEST_SIDE
from openvis_rt.errors import InputError, OpenVISError
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.registry import BackendOptions
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.results import line_of
from openvis_rt.serving.triton.backend import TritonBackend
from openvis_rt.serving.triton.sequences import SequenceRequest, Sequences
from openvis_rt.serving.triton.settings import ModelSettings
from openvis_rt.serving.triton.tensors import array_of, tensor_of

__all__ = ["BUNDLE", "VOCABULARY", "OpenVisModel", "decoded"]

BUNDLE = "bundle"
"""The bundle's directory beside ``model.py``."""
VOCABULARY = "vocabulary.json"
"""The names that a sequence looks for which names none."""

Image8 = npt.NDArray[np.uint8]


class OpenVisModel:
    """One instance of the model, in a process of its own. Triton makes it and calls its methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graphs, unless they are other models of the server, which may not be there yet.

        Args:
            args: of the python backend: ``model_repository``, ``model_version``, ``model_config``
                as JSON, and others.

        Raises:
            OpenVISError: the bundle or its backend cannot be used here; Triton then refuses to
                load the model, and shows the message.
        """
        self._pb = importlib.import_module("triton_python_backend_utils")
        if args.get("model_instance_kind") == "GPU":
            _show_one_gpu(int(args["model_instance_device_id"]))
        home = Path(args["model_repository"], args["model_version"])
        self._bundle = home / BUNDLE
        self._settings = ModelSettings.read(json.loads(args["model_config"]), home / VOCABULARY)
        self._pipeline: Pipeline | None = None
        self._sequences: Sequences | None = None
        if self._settings.graphs is None:
            self._opened()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, in order, with its results or with an error of its own."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Give everything back."""
        if self._sequences is not None:
            self._sequences.close()
        if self._pipeline is not None:
            self._pipeline.close()

    def _opened(self) -> Sequences:
        """The sequences; the graphs are opened at the first call."""
        if self._sequences is None:
            settings = self._settings
            backend: str | Backend = settings.backend
            if settings.graphs is not None:
                backend = TritonBackend(self._pb, settings.graphs)
            self._pipeline = Pipeline.open(
                self._bundle,
                vocabulary=settings.vocabulary,
                backend=backend,
                backend_options=BackendOptions(settings.device, threads=settings.threads),
                precision=settings.precision,
                mode="stream",
                selection=settings.selection,
                tracking=settings.tracking,
                warn=self._pb.Logger.log_warn,
            )
            self._pb.Logger.log_info(f"openvis runs on {self._pipeline.backend}")
            self._sequences = Sequences(self._pipeline, settings.sequences, settings.idle_seconds)
        return self._sequences

    def _answer(self, request: Any) -> Any:
        pb = self._pb
        try:
            results = self._opened().step(self._read(request))
        except OpenVISError as exc:
            return pb.InferenceResponse(error=pb.TritonError(str(exc)))
        except Exception as exc:  # one request's must not end the instance, and all its videos
            pb.Logger.log_error(traceback.format_exc())
            message = f"a defect of openvis-rt: {exc!r}; the server's log has more"
            return pb.InferenceResponse(error=pb.TritonError(message))
        data = b"".join(map(line_of, results))
        found = tensor_of(pb, "results", np.frombuffer(data, np.uint8).copy())
        return pb.InferenceResponse([found])

    def _read(self, request: Any) -> SequenceRequest:
        given = {tensor.name(): tensor for tensor in request.inputs()}
        controls = {
            name: int(array_of(given[name]).ravel()[0]) for name in ("START", "END", "CORRID")
        }
        keep = self._pipeline is not None and self._pipeline.window_length > 1
        parameters = request.parameters()
        return SequenceRequest(
            controls["CORRID"],
            bool(controls["START"]),
            bool(controls["END"]),
            _frame_of(given, copy=keep),
            json.loads(parameters) if parameters else {},
        )


def _show_one_gpu(number: int) -> None:
    """Let this process see the GPU alone that Triton put it on; called before CUDA is loaded."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    known = number < len(visible) and visible[number].strip()
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number].strip() if known else str(number)


def _frame_of(given: dict[str, Any], *, copy: bool) -> Image8 | None:
    """The image of a request, uint8 [H, W, 3]; None if it has none.

    Raises:
        InputError: it has two, or one that cannot be decoded.
    """
    if "frame" in given and "encoded" in given:
        raise InputError("a request has a frame or an encoded one; this one has both")
    if "encoded" in given:
        return decoded(array_of(given["encoded"]).tobytes())
    if "frame" not in given:
        return None
    view = array_of(given["frame"])
    return np.array(view, np.uint8, copy=True) if copy else view.view(np.uint8)


def decoded(data: bytes) -> Image8:
    """A JPEG, PNG or WebP picture, upright by its EXIF orientation: uint8 [H, W, 3] in RGB.

    Raises:
        InputError: it is none, is damaged, or has more pixels a side than a frame may have.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            if max(picture.size) > LARGEST_SIDE:
                raise InputError(
                    f"a frame has at most {LARGEST_SIDE} pixels a side; got "
                    f"{picture.width}x{picture.height}"
                )
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise InputError(
            f"encoded is no whole JPEG, PNG or WebP of {len(data)} bytes: {exc}"
        ) from exc
