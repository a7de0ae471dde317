"""In the place of ``triton_python_backend_utils``: tensors, requests and answers without a server.

A request to another model runs that graph of a bundle by openvis-rt's own sessions.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_name = ctypes.pythonapi.PyCapsule_GetName
_name.argtypes, _name.restype = [ctypes.py_object], ctypes.c_char_p
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes, _rename.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
_TAKEN = b"used_dlpack"  # as the server's own, which is not what DLPack says
TRITONSERVER_MEMORY_CPU = 1


class Tensor:
    """A named array, made from a DLPack capsule as the server makes it: by a copy."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        assert _name(capsule) == b"dltensor"

        class Source:
            def __dlpack__(self, **_: Any) -> Any:
                return capsule

            def __dlpack_device__(self) -> tuple[int, int]:
                return 1, 0

        array = np.from_dlpack(Source()).copy()  # numpy calls it used_dltensor
        _rename(capsule, _TAKEN)
        return cls(name, array)

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


@dataclass
class Request:
    """A client's request as ``execute`` gets it."""

    sequence: int
    start: bool = False
    end: bool = False
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> list[Tensor]:
        flags = {"START": self.start, "END": self.end, "READY": True}
        found = [Tensor(name, np.array([value], np.int32)) for name, value in flags.items()]
        found.append(Tensor("CORRID", np.array([self.sequence], np.uint64)))
        return found + [Tensor(name, value) for name, value in self.tensors.items()]

    def parameters(self) -> str:
        return json.dumps(self.given) if self.given else ""


class PbUtils:
    """The module.

    Args:
        models: of each other model's name the session that runs it; None for a server without.
    """

    Tensor, TritonError, InferenceResponse = Tensor, TritonError, InferenceResponse
    TRITONSERVER_MEMORY_CPU = TRITONSERVER_MEMORY_CPU

    def __init__(self, models: dict[str, Any] | None = None) -> None:
        self.log: list[str] = []
        self.calls: list[tuple[str, list[str]]] = []
        self._models = models or {}

    @property
    def Logger(self) -> Any:  # noqa: N802 - the module's name
        class Logger:
            log_info = log_warn = log_error = self.log.append

        return Logger

    def PreferredMemory(self, kind: int) -> int:  # noqa: N802 - the module's name
        return kind

    def InferenceRequest(  # noqa: N802 - the module's name
        self,
        model_name: str,
        requested_output_names: list[str],
        inputs: list[Tensor],
        preferred_memory: int,
    ) -> Any:
        assert preferred_memory == TRITONSERVER_MEMORY_CPU
        pb = self

        class Call:
            def exec(self) -> InferenceResponse:
                pb.calls.append((model_name, [tensor.name() for tensor in inputs]))
                if model_name not in pb._models:
                    return InferenceResponse(error=TritonError(f"{model_name} is not ready"))
                session = pb._models[model_name]
                for tensor in inputs:
                    session.write(tensor.name(), np.array(np.from_dlpack(tensor)))
                session.run()
                names = requested_output_names
                return InferenceResponse([Tensor(n, session.fetch(n)) for n in names])

        return Call()
