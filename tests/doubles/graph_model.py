"""In the place of Triton's ONNX Runtime backend: a python model that runs ``model.onnx``.

It takes and gives what that backend does: the file's own tensors, all of them, masks as bool.
"""

import os
import sys
from pathlib import Path

sys.path += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p not in sys.path]

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from openvis_rt.serving.triton.tensors import array_of, tensor_of


class TritonPythonModel:
    """One graph."""

    def initialize(self, args):
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # as openvis-rt's own session, so that the numbers are the same
        self.session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],
        )

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feed = {t.name(): np.array(array_of(t)) for t in request.inputs()}
        names = list(request.requested_output_names())
        try:
            values = self.session.run(names, feed)
        except Exception as exc:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(exc)))
        found = [tensor_of(pb_utils, n, v) for n, v in zip(names, values, strict=True)]
        return pb_utils.InferenceResponse(found)
