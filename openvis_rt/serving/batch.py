"""Many videos through one bundle: ``openvis run`` for each, by workers, into one folder.

    run_batch(work, sources, output)

    sources -> videos with ids and folders (index) -> those that are not finished -> workers
            -> a record each -> results.json and tables of all that are finished

The folder can be run again at any time: what is finished stays, if its video has the same bytes.
"""

from __future__ import annotations

import secrets
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import InputError, OpenVISError, VideoError
from openvis_rt.serving.index import BatchFolder, Record, Video
from openvis_rt.serving.ray_pool import (
    Pool,
    Resources,
    check_ray,
    fit_pool,
    ray_cluster,
    records_by_ray,
)
from openvis_rt.serving.sources import find_videos, fingerprint
from openvis_rt.serving.tables import write_tables
from openvis_rt.serving.worker import BatchWork, Worker, hash_of

__all__ = ["BatchReport", "PoolOptions", "memory_of_worker", "run_batch"]

Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]

_OF_RUNTIME = 1 << 29  # bytes of Python, the libraries and a window's tensors, see docs/scale.md
_MOST_GPUS = 1024  # of one worker
_OF_GRAPHS = 3  # times the bytes of the graphs' files
_READERS = 4  # threads that hash finished videos


@dataclass(frozen=True)
class PoolOptions:
    """Who does the work.

    Attributes:
        workers: processes with a pipeline each, by Ray; 0 for this process, without Ray; None for
            as many as fit cores, memory and GPUs.
        address: of a Ray cluster; None for one that is started here.
        gpus: of each worker; a fraction lets several share one. None for one where the cluster has
            GPUs and the work may run there, else none.
        memory: bytes of each worker; None for an estimate.
    """

    workers: int | None = None
    address: str | None = None
    gpus: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no pool is."""
        if self.workers is not None and self.workers < 0:
            raise InputError(f"a batch has 0 workers or more; got {self.workers}")
        if self.workers == 0 and self.address is not None:
            raise InputError("--workers 0 runs in this process, and --address on a cluster")
        if self.gpus is not None and not 0 <= self.gpus <= _MOST_GPUS:
            raise InputError(f"a worker has 0 to {_MOST_GPUS} GPUs; got {self.gpus}")


@dataclass(frozen=True)
class BatchReport:
    """What a batch did.

    Attributes:
        output: its folder.
        videos: that were given.
        finished: that were done now.
        skipped: that an earlier batch had finished.
        failed: that have no results.
        repeated: that were done now and took more than one attempt.
        left: that were not begun, or not ended, because the batch was stopped.
        frames: of those that were done now.
        seconds: of the whole, wall time.
        workers: how many there were; 0 for this process.
        files: the merged ones.
        stopped: why the batch ended before its videos did; empty if it did not.
        interrupted: Ctrl-C or SIGTERM ended it.
        exit_code: 0; 130 if it was interrupted; else that of the error that stopped it, or the
            gravest one of the videos that failed: 1, 3, 2, in this order.
    """

    output: Path
    videos: int
    finished: int
    skipped: int
    failed: list[Record]
    repeated: int
    left: int
    frames: int
    seconds: float
    workers: int
    files: list[Path]
    stopped: str
    interrupted: bool
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        """As JSON types; paths are strings."""
        plain = ("videos", "finished", "skipped", "repeated", "left", "frames", "workers")
        return {
            "output": str(self.output),
            **{name: getattr(self, name) for name in plain},
            "seconds": round(self.seconds, 3),
            "failed": [
                {"video_id": r.video.id, "source": r.video.source, "error": r.error}
                for r in self.failed
            ],
            "files": [str(path) for path in self.files],
            "stopped": self.stopped,
            "interrupted": self.interrupted,
        }


def run_batch(
    work: BatchWork,
    sources: Sequence[str],
    output: Path,
    pool: PoolOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
) -> BatchReport:
    """Run every video that is not finished yet, and merge the results of all that are.

    A video that fails does not stop the others; it is listed with its error. A full disk, a place
    that cannot be written, and a bundle that cannot be opened stop the batch. Ctrl-C and SIGTERM
    end it with all that is finished; what was being done leaves nothing.

    Args:
        work: what is done with each video.
        sources: see :mod:`.sources`.
        output: takes the files of :mod:`.index` and :mod:`.tables`; it may be an earlier batch's.
        pool: who does it.
        overwrite: make the videos of an earlier batch with other options anew.
        progress: told of videos that are done, and in all.
        warn: told of a video that fails, when it does, and of what its run warns of if it runs in
            this process.

    Raises:
        InputError: no video is named, or the pool does not fit.
        OutputError: the output holds other files, is another batch's that runs or has other
            options, or cannot be written.
        BundleError, UnavailableError: nothing can be run; see their classes.
    """
    begin, pool = perf_counter(), pool or PoolOptions()
    if pool.workers != 0:
        check_ray()
    # once for all workers, before anything is made
    work = replace(work, sha256=Bundle.open(work.bundle, sha256=work.sha256).sha256)
    made_with, folder = work.made_with(), BatchFolder(output.absolute())
    progress("looking for videos", 0, None)
    found = find_videos(sources, outside=folder.path)
    with folder.held():
        folder.settle(made_with, overwrite=overwrite)
        run = _Run(work, folder, folder.add(found), hash_of(made_with), progress, warn)
        with _sigterm_interrupts():
            run.all(pool)
        folder.clear_litter()
        files = run.merged()
    return run.report(files, perf_counter() - begin)


def memory_of_worker(bundle: Bundle, precision: str) -> int:
    """Bytes that a worker takes at the most, as an estimate: see docs/scale.md for its errors."""
    graphs = bundle.manifest.graphs.get(precision, {})
    size = sum(bundle.manifest.files[graph.file].bytes for graph in graphs.values())
    return _OF_GRAPHS * size + _OF_RUNTIME * bundle.manifest.window_length


@dataclass
class _Run:
    """A batch on its way."""

    work: BatchWork
    folder: BatchFolder
    videos: list[Video]
    made_with: str
    progress: Progress
    warn: Warn
    batch: str = field(default_factory=lambda: secrets.token_hex(8))
    skipped: int = 0
    workers: int = 0
    done: list[Record] = field(default_factory=list)
    stop: Record | None = None
    interrupted: bool = False
    fatal: OpenVISError | None = None

    def all(self, pool: PoolOptions) -> None:
        """Do what is not finished."""
        try:
            left = self._unfinished()
            if left:
                with closing(self._records(left, pool)) as records:
                    self._take(records)
        except KeyboardInterrupt:
            self.interrupted = True
        if self.interrupted or self.stop is not None:
            self._recount()

    def _recount(self) -> None:
        """Add the videos that workers finished while nobody listened any more."""
        told = {record.video.id for record in self.done}
        for video in self.videos:
            found = self.folder.finished(video, self.made_with)
            if found is not None and found.batch == self.batch and video.id not in told:
                self.done.append(found)

    def _unfinished(self) -> list[Video]:
        """The videos that are to be done; bytes of the others are compared with their records."""

        def is_finished(video: Video) -> bool:
            if self.folder.finished(video, self.made_with) is None:
                return False
            try:
                known = fingerprint(video.source)
            except VideoError:  # the worker says so
                return False
            return self.folder.finished(video, self.made_with, known) is not None

        left = []
        with ThreadPoolExecutor(_READERS) as readers:
            for number, (video, known) in enumerate(
                zip(self.videos, readers.map(is_finished, self.videos), strict=True), 1
            ):
                self.progress("comparing finished videos", number, len(self.videos))
                if not known:
                    left.append(video)
        self.skipped = len(self.videos) - len(left)
        return left

    def _records(self, videos: list[Video], pool: PoolOptions) -> Generator[Record, None, None]:
        if pool.workers == 0:
            yield from self._here(videos)
            return
        self.progress("starting Ray", self.skipped, len(self.videos))
        with ray_cluster(pool.address) as resources:
            fitted = self._fitted(pool, resources, len(videos))
            self.workers = fitted.workers
            self.progress(f"{fitted.workers} workers", self.skipped, len(self.videos))
            given = (self.work, self.folder, videos, self.made_with, self.batch, fitted)
            with closing(records_by_ray(*given)) as records:
                yield from records

    def _fitted(self, pool: PoolOptions, resources: Resources, videos: int) -> Pool:
        bundle = Bundle.open(self.work.bundle, verify=False, sha256=self.work.sha256)
        return fit_pool(
            resources,
            videos,
            workers=pool.workers,
            gpus=self._gpus(pool, resources),
            memory=pool.memory or memory_of_worker(bundle, self.work.precision),
            warn=self.warn,
        )

    def _gpus(self, pool: PoolOptions, resources: Resources) -> float:
        if pool.gpus is not None:
            return pool.gpus
        return 1.0 if resources.gpus and self.work.backend_options.device != "cpu" else 0.0

    def _here(self, videos: list[Video]) -> Generator[Record, None, None]:
        worker = Worker(self.work, self.folder, self.made_with, self.batch, warn=self.warn)
        with closing(worker):
            for video in videos:
                self.progress(
                    f"video {video.folder}", self.skipped + len(self.done), len(self.videos)
                )
                yield worker.do(video)

    def _take(self, records: Iterator[Record]) -> None:
        """Note each record, until one says that the batch must end."""
        for record in records:
            if record.status == "stopped":
                self.stop, self.interrupted = record, not record.error
                return
            self.done.append(record)
            if record.status == "failed":
                self.warn(f"video {record.video.source} failed: {record.error}")
            phase = f"{self.workers} workers" if self.workers else f"video {record.video.folder}"
            self.progress(phase, self.skipped + len(self.done), len(self.videos))

    def merged(self) -> list[Path]:
        """Results and tables of every video of this folder that is finished or has failed."""
        records = []
        for video in self.folder.videos():
            known = self.folder.record(video)
            if known is None or known.made_with != self.made_with or known.video != video:
                continue
            if known.status == "failed" or self.folder.finished(video, self.made_with) is not None:
                records.append(known)
        if not records:
            return []
        try:
            return write_tables(
                self.folder,
                self.work.vocabulary.names,
                records,
                entries=self.work.mode == "video",
                progress=lambda done: self.progress("merging", done, len(records)),
            )
        except OpenVISError as exc:  # such as a disk that is still full
            if self.stop is None:
                raise
            self.warn(f"the results are not merged: {exc}")
            return []

    def report(self, files: list[Path], seconds: float) -> BatchReport:
        """What was done."""
        finished = [record for record in self.done if record.status == "finished"]
        failed = [record for record in self.done if record.status == "failed"]
        codes = {record.exit_code for record in failed}
        code = next((code for code in (1, 3, 4, 2) if code in codes), 0)
        if self.stop is not None and self.stop.error:
            code = self.stop.exit_code
        return BatchReport(
            output=self.folder.path,
            videos=len(self.videos),
            finished=len(finished),
            skipped=self.skipped,
            failed=failed,
            repeated=sum(record.attempts > 1 for record in self.done),
            left=len(self.videos) - self.skipped - len(self.done),
            frames=sum((record.report or {}).get("frames", 0) for record in finished),
            seconds=seconds,
            workers=self.workers,
            files=files,
            stopped=self.stop.error if self.stop is not None else "",
            interrupted=self.interrupted,
            exit_code=130 if self.interrupted else code,
        )


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C while the block runs: schedulers of clusters send it."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
