"""One worker of a batch: it opens the bundle once and takes one video after another.

What it does with a video is ``openvis run``. What it adds is a record of how that ended, written
when the video's folder is whole; and one before it begins, so that a video that kills its worker
each time is given up after as many attempts as others are.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

from openvis_rt import __version__
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import InputError, OpenVISError, OutputError, UnavailableError, VideoError
from openvis_rt.files import sha256_of
from openvis_rt.runtime.backends.registry import BackendOptions
from openvis_rt.runtime.options import Selection, TrackingOptions
from openvis_rt.runtime.pipeline import Mode, Pipeline
from openvis_rt.runtime.run import RunOptions, RunReport, run_video
from openvis_rt.serving.index import BatchFolder, Record, Video
from openvis_rt.serving.sources import fetched, fingerprint, is_address
from openvis_rt.vocabulary import Vocabulary

__all__ = ["BatchWork", "Worker"]

Warn = Callable[[str], None]


@dataclass(frozen=True)
class BatchWork:
    """What is done with each video; it travels to the workers.

    Attributes:
        bundle: its directory, the same on every machine.
        sha256: of the bundle, which the workers must find there; None for any.
        vocabulary, classifier, backend, backend_options, precision, mode, selection, tracking: as
            for :meth:`.Pipeline.open`.
        run: see its class; its ``video_id`` and ``overwrite`` are the batch's affair.
        retries: how often a video is begun again whose failure may pass: a worker that died, an
            address that was not reached, a device that failed.
    """

    bundle: Path
    vocabulary: Vocabulary
    sha256: str | None = None
    classifier: Path | None = None
    backend: str = "auto"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    precision: str = "fp32"
    mode: Mode = "video"
    selection: Selection = field(default_factory=Selection)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    run: RunOptions = field(default_factory=RunOptions)
    retries: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.retries < 0:
            raise InputError(f"a video is begun again 0 times or more; got retries={self.retries}")

    def made_with(self) -> dict[str, Any]:
        """All that the outputs depend on but the videos themselves, as JSON types.

        Raises:
            BundleError: there is no bundle, or not the one that it must be.
        """
        run = asdict(self.run)
        for own in ("video_id", "overwrite"):
            run.pop(own)
        return {
            "openvis-rt": __version__,
            "bundle": Bundle.open(self.bundle, verify=False, sha256=self.sha256).sha256,
            "classes": list(self.vocabulary.names),
            "other names": list(self.vocabulary.others),
            "classifier": None if self.classifier is None else sha256_of(self.classifier),
            "backend": self.backend,
            "device": self.backend_options.device,
            "precision": self.precision,
            "mode": self.mode,
            "selection": asdict(self.selection),
            "tracking": asdict(self.tracking),
            "run": run,
        }

    def open(self, warn: Warn) -> Pipeline:
        """The pipeline that does it; BundleError where it is not the bundle that it must be."""
        return Pipeline.open(
            Bundle.open(self.bundle, sha256=self.sha256),
            vocabulary=self.vocabulary,
            classifier=self.classifier,
            backend=self.backend,
            backend_options=self.backend_options,
            precision=self.precision,
            mode=self.mode,
            selection=self.selection,
            tracking=self.tracking,
            warn=warn,
        )


def hash_of(made_with: dict[str, Any]) -> str:
    """A hash of JSON types."""
    return sha256(dumps(made_with, sort_keys=True).encode()).hexdigest()


class Worker:
    """Does videos, one after another.

    Args:
        work: what is done with each.
        folder: where the outputs go.
        made_with: the hash of ``work.made_with()``.
        batch: a name of this run of the command.
        dies: the process is the worker's own, and is begun anew when it ends: where the pipeline
            may be broken, or a signal asked it to end, it does.
        progress: told of phase, frames done, and frames in all.
        warn: told what a video's run warns of.
    """

    def __init__(
        self,
        work: BatchWork,
        folder: BatchFolder,
        made_with: str,
        batch: str,
        *,
        dies: bool = False,
        progress: Callable[[str, int, int | None], None] = lambda *_: None,
        warn: Warn = lambda _: None,
    ) -> None:
        self._work, self._folder, self._dies = work, folder, dies
        self._made_with, self._batch = made_with, batch
        self._progress, self._warn = progress, warn
        self._pipeline: Pipeline | None = None
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def close(self) -> None:
        """Give the pipeline's memory back."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def do(self, video: Video) -> Record:
        """Run a video, unless its outputs are there already, and write its record.

        Returns:
            a ``finished`` or ``failed`` record; or a ``stopped`` one, with the error that must end
            the batch, or without one where a signal asked for it.
        """
        record = Record(video, "running", "", self._made_with, self._batch, worker=self._name)
        try:
            try:
                record = replace(record, fingerprint=fingerprint(video.source))
            except VideoError as exc:
                return self._give_up(_with_error(record, exc))
            known = self._folder.finished(video, self._made_with, record.fingerprint)
            if known is not None:  # another attempt ended well, and its worker died after that
                return known
            return self._attempts(self._begun(record))
        except _UnableError as exc:
            return replace(_with_error(record, exc.error), status="stopped")
        except OutputError as exc:
            return replace(_with_error(record, exc), status="stopped")

    def _begun(self, record: Record) -> Record:
        """The record with the attempts of this batch's workers that died over it."""
        before = self._folder.record(record.video)
        if before is None or before.batch != self._batch:
            return record
        return replace(
            record, attempts=before.attempts, error=before.error, exit_code=before.exit_code
        )

    def _attempts(self, record: Record) -> Record:
        """Run a video as often as it may be begun."""
        while record.attempts <= self._work.retries:
            record = replace(record, attempts=record.attempts + 1)
            self._folder.write(record)
            try:
                return self._once(record)
            except _UnableError:
                raise
            except Exception as exc:
                if isinstance(exc, OutputError) and isinstance(exc.__cause__, OSError):
                    raise  # the disk is full, or has no such rights: for every other video, too
                record = _with_error(record, exc)
                if not isinstance(exc, InputError):
                    self._renew(record)
                elif not is_address(record.video.source):
                    break  # it would fail again
        return self._give_up(record)

    def _once(self, record: Record) -> Record:
        video, output = record.video, self._folder.output(record.video)
        if self._pipeline is None:
            try:
                self._pipeline = self._work.open(self._warn)
            except OpenVISError as exc:  # no video can be run
                raise _UnableError(exc) from exc
        options = replace(self._work.run, video_id=video.id, overwrite=True)
        with fetched(video.source) as path:
            report = run_video(self._pipeline, path, output, options, self._progress, self._warn)
        if report.stopped:
            return self._stopped(record, output)
        record = replace(
            record,
            status="finished",
            error="",
            report=_report_of(report),
            files=self._folder.digests(video),
        )
        self._folder.write(record)
        return record

    def _stopped(self, record: Record, output: Path) -> Record:
        """A signal ended the run before its video: what there is of it goes."""
        shutil.rmtree(output, ignore_errors=True)
        if self._dies:
            signal.raise_signal(signal.SIGTERM)  # the run took the first one for itself
            os._exit(1)
        return replace(record, status="stopped", error="")

    def _give_up(self, record: Record) -> Record:
        record = replace(record, status="failed")
        if not record.error:
            record = replace(
                record,
                exit_code=UnavailableError.exit_code,
                error=f"its worker died in each of {record.attempts} attempts, as when memory runs "
                "out or a decoder crashes; try it alone with `openvis run`",
            )
        self._folder.write(record)
        return record

    def _renew(self, record: Record) -> None:
        """Go on with a new pipeline, since an error that nobody foresaw may have broken this one.

        A CUDA context that failed stays so as long as its process lives.
        """
        if self._dies:
            self._folder.write(record)
            os._exit(1)
        self.close()


class _UnableError(Exception):
    """The pipeline cannot be opened."""

    def __init__(self, error: OpenVISError) -> None:
        self.error = error
        super().__init__(str(error))


def _with_error(record: Record, error: Exception) -> Record:
    if isinstance(error, OpenVISError):
        return replace(record, error=str(error), exit_code=error.exit_code)
    words = f"{type(error).__name__}: {error}"
    return replace(record, error=words, exit_code=OpenVISError.exit_code)


def _report_of(report: RunReport) -> dict[str, Any]:
    """What the record keeps of a run: all but where the folder is, which may be moved."""
    kept = report.to_json()
    kept.pop("outputs")
    return kept
