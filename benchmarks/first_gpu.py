"""The first day on a GPU: everything that no machine without one can show, in order.

    python benchmarks/first_gpu.py BUNDLE [--backend tensorrt|tensorrt-rtx] [--frames 2000]

BUNDLE is one of `openvis export`, with its recorded reference; the engines are built into it. The
steps go from the driver to whole videos, so that the first one that fails is the cause of the rest:
the script stops there, says what was seen and what to look at next, and ends with an exit code that
is not 0. The table is printed step by step; FOLDER/first_gpu.json holds it from the first row on,
also where the process itself is killed (its ``running`` is then the step), with the times of all
layers and the memory on the way. Nothing is skipped in silence: what does not apply has a row that
says why.

Timed, each by itself: layers by the library's profiler, without CUDA graphs; the long video with
two windows in flight, from uint8 frames in host memory to run-length masks of ten instances a
frame, without decoding, drawing or writing; a start from opening the pipeline to the first result.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import first_gpu_engines as engines
import first_gpu_videos as videos
from first_gpu_work import FAILED, NOT_HERE, OK, Row, Work
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import CONSOLE, parse_size, progress_bar
from openvis_rt.engines.library import TENSORRT_BACKENDS
from openvis_rt.engines.plan import BuildOptions
from openvis_rt.errors import OpenVISError
from openvis_rt.files import output_file
from openvis_rt.runtime.backends.tensorrt.bindings import CudaChoice
from openvis_rt.verify.reference import read_reference

INTERRUPTED = 130
FEWEST = 3  # frames that are compared: a CUDA graph is launched from a slot's second run on


class Step(NamedTuple):
    """One step: its name, what it does, and what to look at where it fails."""

    name: str
    run: Callable[[Work], Iterator[Row]]
    next: str


STEPS = (
    Step(
        "versions",
        engines.versions,
        "`openvis doctor` lists what is missing and the command that adds it. Without a GPU, look "
        "at `nvidia-smi` and at CUDA_VISIBLE_DEVICES.",
    ),
    Step(
        "cuda",
        engines.events_and_capture,
        "No engine is involved yet. 'cuEventElapsedTime_v2 is not found' means that the driver is "
        "older than CUDA 12.8: pip install 'cuda-python<13'. Else try --cuda pycuda, and look for "
        "Xid in `dmesg` and for other processes in `nvidia-smi`.",
    ),
    Step(
        "masks",
        engines.masks,
        "If it does not build, the message is the library's; the graph is the bundle's masks.onnx. "
        "If numbers are wrong, `openvis verify BUNDLE --backend onnxruntime` says whether the "
        "bundle itself is sound.",
    ),
    Step(
        "text",
        engines.text,
        "TensorRT has compiled CLIP's text tower wrongly before, in FP32 too (NVIDIA/TensorRT "
        "#4328, #4333, where q and k are both scaled). `openvis verify BUNDLE --backend "
        "onnxruntime` says whether the bundle is sound; another version of the library is the "
        "next thing to try.",
    ),
    Step(
        "networks",
        engines.networks,
        "`openvis verify BUNDLE --backend as-built` runs the rewritten graphs in ONNX Runtime: if "
        "they pass, the library compiles them wrongly, and `openvis verify BUNDLE --polygraphy "
        "FOLDER` leaves inputs and outputs to reduce the case with. Only FP16: compare the layer "
        "types in the engine's JSON with docs/fp16.md. Only windows above T=1: a batch has been "
        "silently wrong before (NVIDIA/TensorRT #4853). FP32 of 40 dB and more, in outputs of "
        "`propose` alone, may be attention-mask bits that flip on rounding (docs/parity.md): then "
        "the gate is too narrow for this GPU. Near 0 dB it is a defect.",
    ),
    Step(
        "proof",
        engines.proofs,
        "The step before passed, so a plain run in slot 0 is right, and what is compared here "
        "besides is not: CUDA graphs (BackendOptions(cuda_graphs=False) runs without), the second "
        "slot, other lengths and sizes, seeded inputs. The message says which.",
    ),
    Step(
        "layers",
        engines.layer_types,
        "The JSON beside the engine has the parsed network's layers. --without layers goes on.",
    ),
    Step(
        "profile",
        engines.layer_times,
        "Nothing else needs the profiler: --without profile goes on.",
    ),
    Step(
        "compare",
        videos.same_frames,
        "If stream differs from step with CUDA graphs off, a buffer is overwritten before it is "
        "read: the events in openvis_rt/runtime/backends/tensorrt/session.py; `compute-sanitizer "
        "--tool memcheck` and CUDA_LAUNCH_BLOCKING=1 narrow it down. If only CUDA graphs differ or "
        "are not captured: `_execute` there, and BackendOptions(cuda_graphs=False) until it is "
        "mended. If two equal runs differ, the kernels themselves are not deterministic.",
    ),
    Step(
        "frames",
        videos.long_video,
        "Memory on the way is in the JSON: growth at every sample is a leak, a jump may be another "
        "process on the device. --frames 10000 tells more.",
    ),
    Step(
        "start",
        videos.cold_and_warm_start,
        "The kernels stand beside the engines as .kernels files; see "
        "openvis_rt/runtime/backends/tensorrt/kernel_cache.py. A bundle that cannot be written "
        "keeps none.",
    ),
)
OPTIONAL = ("proof", "layers", "profile", "compare", "frames", "start")
"""Steps that no later one needs."""


@dataclass
class Record:
    """The table so far, and its file."""

    path: Path
    bundle: str
    backend: str
    running: str = ""
    passed: bool = False
    rows: list[dict[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: dict[str, str] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Add a row of the running step, and write."""
        self.rows.append({"step": self.running, **row._asdict()})
        self.write()

    def write(self) -> None:
        """Write the JSON, whole or not at all."""
        with output_file(self.path) as partial:
            partial.write_text(
                json.dumps({**asdict(self), "path": str(self.path)}, indent=1) + "\n"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; the exit code."""
    options = parse(arguments)
    try:
        work = work_from(options)
        record = Record(options.out / "first_gpu.json", str(options.bundle), options.backend)
        record.details = work.details
        record.write()
        for step in STEPS:
            code = run_step(step, work, record, left_out=step.name in options.without)
            if code:
                return code
        record.running, record.passed = "", True
        record.write()
    except OpenVISError as exc:  # the bundle is of no use, or the JSON cannot be written
        CONSOLE.print(f"error: {exc}", markup=False)
        return exc.exit_code
    CONSOLE.print(f"all {len(STEPS)} steps passed; the table is in {record.path}", markup=False)
    return 0


def run_step(step: Step, work: Work, record: Record, *, left_out: bool) -> int:
    """Run one step and print its part of the table; the exit code, 0 if it passed."""
    record.running, begun, before = step.name, time.perf_counter(), len(record.rows)
    error: BaseException | None = None
    try:
        if left_out:
            record.add(Row(step.name, "left out: --without", NOT_HERE))
        else:
            CONSOLE.print(f"{step.name} ...", markup=False)
            record.write()  # so that it names the step if the process is killed
            with progress_bar() as bar:
                work.tell = bar
                for row in step.run(work):
                    record.add(row)
    except (Exception, KeyboardInterrupt) as exc:
        error = exc
    record.seconds[step.name] = round(time.perf_counter() - begun, 3)
    if error is None:
        print_rows(record.rows[before:], header=before == 0)
        return 0
    return failed(step, error, record, before)


def failed(step: Step, error: BaseException, record: Record, before: int) -> int:
    """Keep and tell a failure; the exit code."""
    kind, message = type(error).__name__, str(error) or "no message"
    record.failure = {
        "step": step.name,
        "error": kind,
        "message": message,
        "next": step.next,
        "traceback": "".join(traceback.format_exception(error)),
    }
    record.add(Row("stopped here", f"{kind}: {message.splitlines()[0]}", FAILED))
    print_rows(record.rows[before:], header=before == 0)
    if isinstance(error, KeyboardInterrupt):
        CONSOLE.print(f"interrupted in step {step.name!r}; {record.path} has what was found")
        return INTERRUPTED
    CONSOLE.print(f"\nstep {step.name!r} failed", style="bold red", markup=False)
    CONSOLE.print(f"seen: {kind}: {message}", markup=False)
    CONSOLE.print(f"next: {step.next}", markup=False)
    CONSOLE.print(f"kept: {len(record.rows)} rows, in {record.path}", markup=False)
    if not isinstance(error, OpenVISError):  # where it came from matters then
        CONSOLE.print(record.failure["traceback"], markup=False)
        return 1
    return error.exit_code


def print_rows(rows: Sequence[dict[str, str]], *, header: bool) -> None:
    """A part of the one table, on stdout."""
    table = Table(box=None, show_header=header, pad_edge=False, expand=True)
    table.add_column("step", width=9)
    table.add_column("what", width=44)
    table.add_column("found", ratio=1)
    table.add_column("verdict", width=14)
    for row in rows:
        style = {OK: "green", FAILED: "bold red"}.get(row["verdict"], "")
        cells = (Text(row[name]) for name in ("step", "what", "found"))
        table.add_row(*cells, Text(row["verdict"], style))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", choices=TENSORRT_BACKENDS, default="tensorrt")
    parser.add_argument("--cuda", choices=get_args(CudaChoice), default="auto")
    parser.add_argument("--frames", type=positive, default=2000, help="of the long video")
    parser.add_argument(
        "--compared", type=positive, default=50, help="frames compared bit by bit; 3 at the least"
    )
    parser.add_argument(
        "--size", default="720x1280", metavar="HxW", help="of the video, where the bundle takes any"
    )
    parser.add_argument("--out", type=Path, default=Path("first-gpu"), metavar="FOLDER")
    parser.add_argument("--workspace-mib", type=positive, help="as of openvis build")
    parser.add_argument("--no-verify", action="store_true", help="as of openvis build")
    parser.add_argument("--without", nargs="+", choices=OPTIONAL, default=[], metavar="STEP")
    options = parser.parse_args(arguments)
    if options.compared < FEWEST:
        parser.error(f"--compared is {options.compared}; give {FEWEST} or more")
    return options


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {text}; give 1 or more")
    return number


def work_from(options: argparse.Namespace) -> Work:
    """What the command line asks for.

    Raises:
        InputError: the bundle cannot be used, or has no recorded reference.
    """
    bundle = Bundle.open(options.bundle)
    size = parse_size(options.size, "--size")
    assert size is not None
    return Work(
        bundle,
        read_reference(bundle),
        options.backend,
        options.cuda,
        options.frames,
        options.compared,
        size,
        BuildOptions(workspace_mib=options.workspace_mib),
        verify=not options.no_verify,
    )


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
