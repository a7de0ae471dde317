"""Workers of a batch as Ray Data's pool of actors, on this machine or on a cluster.

A video is a row and a block of its own, so that an actor that dies loses that video only: Ray
starts the actor anew and gives it the video again, without end; :class:`.worker.Worker` counts, and
gives up. Rows hold names only; videos and results stay on disk.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import BackendError, DependencyError, InputError
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.serving.index import BatchFolder, Record, Video
from openvis_rt.serving.worker import BatchWork, Worker

__all__ = ["Pool", "Resources", "check_ray", "fit_pool", "ray_cluster", "records_by_ray"]

_MOST_BLOCKS = 20_000  # Ray's scheduler looks at each; a worker that dies repeats no finished video
_STORE = 100 << 20  # bytes of Ray's object store; rows are names
_GIB = 1 << 30

Rows = dict[str, npt.NDArray[np.str_]]


@dataclass(frozen=True)
class Resources:
    """What a machine or a cluster has: cores, GPUs, and bytes of memory."""

    cores: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Pool:
    """How a batch is spread.

    Attributes:
        workers: actors, each a process with a pipeline of its own.
        cores: of each, which may be less than one.
        threads: that compute a graph of each.
        gpus: of each; a fraction lets actors share one.
        memory: bytes of each, as an estimate.
    """

    workers: int
    cores: float
    threads: int
    gpus: float
    memory: int


def fit_pool(
    resources: Resources,
    videos: int,
    *,
    workers: int | None,
    gpus: float,
    memory: int,
    warn: Callable[[str], None] = lambda _: None,
) -> Pool:
    """As many workers as fit cores, GPUs and memory, and no more than there are videos.

    Args:
        resources: what there is.
        videos: how many are to be done.
        workers: that many, fit or not in cores and memory; None for as many as fit.
        gpus: of each worker; 0 for none.
        memory: of each worker, bytes.
        warn: told where the memory may not suffice.

    Raises:
        InputError: the GPUs do not suffice, or a number is none of a pool.
    """
    if gpus < 0 or memory < 0 or (workers is not None and workers < 1):
        raise InputError("a pool has at least one worker, and no negative GPUs or memory")
    most = int(resources.gpus / gpus + 1e-9) if gpus else None
    if most is not None and most < (workers or 1):
        raise InputError(
            f"{workers or 1} workers with {gpus:g} GPUs each need more than the {resources.gpus:g} "
            "there are; give --gpus-per-worker a fraction, or fewer --workers"
        )
    fitting = max(1, int(min(resources.cores, resources.memory / max(memory, 1))))
    count = workers or min(fitting, most or fitting)
    count = max(1, min(count, videos))
    if count * memory > resources.memory:
        warn(
            f"{count} workers take about {count * memory / _GIB:.1f} GiB, and "
            f"{resources.memory / _GIB:.1f} are free; if workers are killed, give fewer --workers"
        )
    cores = resources.cores / count
    whole = float(int(cores)) if cores >= 1 else cores
    return Pool(count, whole, max(1, int(cores)), gpus, memory)


def check_ray() -> None:
    """Look for Ray without the seconds that it takes to import it.

    Raises:
        DependencyError: it is not installed.
    """
    if find_spec("ray") is None:
        raise DependencyError("ray", "ray")


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Resources]:
    """A connection to a cluster, or a Ray of this process alone, while the block runs.

    Args:
        address: of a cluster (``auto``, ``host:6379``, ``ray://host:10001``); None to start Ray
            here, with the cores that this process may use. One that is connected already is taken.

    Raises:
        DependencyError: Ray is not installed.
        BackendError: Ray does not start, or the cluster does not answer.
    """
    try:
        import ray
        import ray.data
    except ImportError as exc:
        raise DependencyError("ray", "ray") from exc
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    with redirect_stdout(sys.stderr):  # Ray tells of dead workers on stdout, which is for data
        try:
            if ours:
                ray.init(**_arguments(address))
            found = ray.cluster_resources()
        except Exception as exc:
            where = f"the cluster at {address} does not answer" if address else "Ray does not start"
            raise BackendError(f"{where}: {exc}. Without Ray: --workers 0") from exc
        try:
            yield Resources(found.get("CPU", 1.0), found.get("GPU", 0.0), found.get("memory", 0.0))
        finally:
            if ours:
                ray.shutdown()


def _arguments(address: str | None) -> dict[str, Any]:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        return {"address": address, **quiet}
    # Ray's C++ half has its own log, which warns of restarts that Ray Data itself asks for
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    cores = len(os.sched_getaffinity(0))
    return {"num_cpus": cores, "object_store_memory": _STORE, "include_dashboard": False, **quiet}


class _Actor:
    """The callable of ``map_batches``: a worker in a process of its own."""

    def __init__(self, work: BatchWork, folder: BatchFolder, made_with: str, batch: str) -> None:
        self._worker = Worker(work, folder, made_with, batch, dies=True)

    def __call__(self, rows: Rows) -> Rows:
        """Do a block's videos, one row each."""
        done = []
        for row in rows["video"]:
            record = self._worker.do(record_from_json(Video, json.loads(str(row))))
            done.append(json.dumps(json_from_record(record)))
            if record.status == "stopped":
                break
        return {"record": np.array(done)}


def records_by_ray(
    work: BatchWork,
    folder: BatchFolder,
    videos: list[Video],
    made_with: str,
    batch: str,
    pool: Pool,
) -> Generator[Record, None, None]:
    """Do videos by a pool of actors; each record as soon as it is there, in no order.

    Large files are begun first, since a long video that is begun last keeps one worker busy while
    all others wait. Where blocks have several videos, each gets large and small ones.

    Ray is connected, see :func:`ray_cluster`.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False  # there is one for the whole
    blocks = ceil(len(videos) / ceil(len(videos) / _MOST_BLOCKS))
    ordered = sorted(videos, key=lambda video: -_size(video.source))
    dealt = [video for block in range(blocks) for video in ordered[block::blocks]]
    rows = [{"video": json.dumps(json_from_record(video))} for video in dealt]
    options = replace(work.backend_options, threads=pool.threads)
    given = (replace(work, backend_options=options), folder, made_with, batch)
    strategy = ActorPoolStrategy(
        min_size=1,  # a cluster that has less room for the moment begins with what it has
        max_size=pool.workers,
        initial_size=pool.workers,
        max_tasks_in_flight_per_actor=1,  # a video that waits behind a long one could go elsewhere
    )
    data = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        _Actor,
        fn_constructor_args=given,
        batch_size=1,
        compute=strategy,
        num_cpus=pool.cores,
        num_gpus=pool.gpus,
    )
    for block in data.iter_batches(batch_size=None, prefetch_batches=0):
        for text in block["record"]:
            yield record_from_json(Record, json.loads(str(text)))


def _size(source: str) -> int:
    """Bytes of a file; 0 for what is none, which comes last."""
    path = Path(source)
    return path.stat().st_size if path.is_file() else 0
