"""Every error that a user may meet, in one tree, each with the exit code of the command.

    OpenVISError                1   a defect of ours, if nothing below fits
    |-- InputError              2   bad usage or bad input
    |   |-- CheckpointError         a file of weights that cannot be used
    |   |-- BundleError             a bundle that is missing, damaged or of another version
    |   |-- VideoError              a video that cannot be read to its end
    |   |-- VocabularyError         class names that cannot be used
    |   |-- RecordError             JSON that does not describe what it should
    |   `-- OutputError             a place that cannot be written
    |-- UnavailableError        3   the environment lacks something
    |   |-- DependencyError         a library is not installed
    |   |-- BackendError            a backend does not work on this machine
    |   `-- EngineError             an engine cannot be built or does not fit this machine
    `-- ParityError             4   a parity or accuracy gate failed

A message says what was found, what was needed and how to mend it.
"""

from __future__ import annotations

import sys

from openvis_rt.printable import printable, without_password

__all__ = [
    "EXPORT_PYTHON",
    "BackendError",
    "BundleError",
    "CheckpointError",
    "DependencyError",
    "EngineError",
    "InputError",
    "OpenVISError",
    "OutputError",
    "ParityError",
    "RecordError",
    "UnavailableError",
    "VideoError",
    "VocabularyError",
]


EXPORT_PYTHON = (3, 11)
"""The oldest Python that the extra ``export`` installs torch on; all else runs on 3.10."""


class OpenVISError(Exception):
    """Base of every error that this package raises on purpose.

    Its text is safe to print, whatever a stranger's file put into it, and holds no password of an
    address.
    """

    exit_code = 1

    def __str__(self) -> str:
        return without_password(printable(super().__str__()))


class InputError(OpenVISError):
    """The command was called wrongly, or was given something that it cannot use."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, of another model, or not loadable without unpickling."""


class BundleError(InputError):
    """A bundle is missing a file, was changed after it was written, or has an unknown schema."""


class VideoError(InputError):
    """A video cannot be opened, or cannot be decoded to its end."""


class VocabularyError(InputError):
    """The class names are empty, repeated or otherwise unusable."""


class RecordError(InputError):
    """A value in JSON, or of a dataclass, is not what its field needs.

    Args:
        path: of the field, such as ``graphs.fp32.propose.file``; empty for the whole.
        problem: what is wrong with it.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}" if path else problem)

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str]]:
        return RecordError, (self.path, self.problem)


class OutputError(InputError):
    """An output exists already, or its place cannot be written (rights, space)."""


class UnavailableError(OpenVISError):
    """The environment lacks something that was asked for."""

    exit_code = 3


class DependencyError(UnavailableError):
    """A library is not installed.

    Args:
        module: the import name that failed.
        extra: the extra of this distribution that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        self.module, self.extra = module, extra
        where = ""
        if extra == "export" and sys.version_info < EXPORT_PYTHON:
            where = " on Python {}.{} or newer".format(*EXPORT_PYTHON)
        super().__init__(
            f"{module} is not installed, and this step needs it. "
            f"Install it{where} with: pip install 'openvis-rt[{extra}]'"
        )

    def __reduce__(self) -> tuple[type[DependencyError], tuple[str, str]]:
        return DependencyError, (self.module, self.extra)


class BackendError(UnavailableError):
    """A backend was asked for that does not work on this machine."""


class EngineError(UnavailableError):
    """An engine cannot be built here, or was built for another library, GPU or bundle."""


class ParityError(OpenVISError):
    """A measured error is above its gate."""

    exit_code = 4
