"""How good the trained miniatures are on every backend, and the papers' claims in miniature.

    python benchmarks/miniatures.py accuracy FOLDER [MODEL ...] [--videos 120] [--split validation]
        [--seed 0] [--threads 1]
    python benchmarks/miniatures.py claims FOLDER [MODEL ...] [--videos 60] [--split test]
        [--seeds 0 1 2] [--contrast WITH WITHOUT] [--threads 1]

The models have the weights that come with the package, at 128x224 with all 229 categories of the
generated world as the vocabulary; AP is that of `openvis eval`. `accuracy` runs PyTorch, ONNX
Runtime in FP32, and ONNX Runtime on the FP16 emulation of the FP16 graphs, and ends with exit code
4 if AP, over all, base or novel categories, is more than 0.5 points from PyTorch's. `claims` runs
PyTorch with one thing changed at a time (benchmarks/miniature_claims.py), over the videos of
several worlds, and says of each claim whether its sign reproduces. WITH and WITHOUT are
InstFormer's proposals trained alike but for `--contrast 0`: checkpoints, or the runs' `last.pt`.

FOLDER takes the videos, the bundles and results.jsonl, a line for each (model, setting, split,
seed, videos, weights). What is there is not run again, so a run that was broken off goes on; a
table is made from what is there. It goes to stdout, and with JSON into FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from miniature_claims import BY_CONTRAST, CLAIMS, CROPS, Setting, settings_of
from miniature_runs import (
    DataSet,
    Figures,
    Fp16Emulation,
    Progress,
    data_set,
    exported,
    measured,
    opened,
    remembering,
    seconds_of,
    shipped,
)
from miniature_tables import (
    TORCH,
    Line,
    accuracy_rows,
    accuracy_table,
    check_gate,
    claim_rows,
    claims_table,
    times_table,
)

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import progress_bar
from openvis_rt.errors import InputError, OpenVISError
from openvis_rt.export.bundle import tool_versions
from openvis_rt.files import output_file, sha256_of
from openvis_rt.models.network import Network
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.verify.torch_backend import TorchBackend

MODELS = ("clip-vis-mini", "instformer-mini", "ovformer-mini")
RUNS_ON = {TORCH: "fp32", "ONNX Runtime fp32": "fp32", "ONNX Runtime fp16, emulated": "fp16"}
TIMED = 5  # videos, and one to warm up
TIMES = "seconds"  # the setting of the line that holds them


def main() -> None:
    """Run what the command line asks for; an error of ours becomes its message and exit code."""
    options = parse()
    torch.set_num_threads(options.threads)
    try:
        with progress_bar() as progress:
            work = accuracy if options.part == "accuracy" else claims
            found = work(options, Results(options.folder / "results.jsonl"), progress)
        write(options, found)
        if options.part == "accuracy":
            check_gate(found["rows"])
    except OpenVISError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for part, split, videos in (("accuracy", "validation", 120), ("claims", "test", 60)):
        command = parts.add_parser(part)
        command.add_argument("folder", type=Path)
        command.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
        command.add_argument("--videos", type=int, default=videos)
        command.add_argument("--split", choices=("train", "validation", "test"), default=split)
        command.add_argument("--threads", type=int, default=1)
        if part == "accuracy":
            command.add_argument("--seed", type=int, default=0, help="of the world")
        else:
            command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
            command.add_argument("--contrast", type=Path, nargs=2, metavar=("WITH", "WITHOUT"))
    options = parser.parse_args()
    check_models(parser, options)
    for file in getattr(options, "contrast", None) or ():
        if not file.is_file():
            parser.error(f"there is no file {file} of trained proposals")
    if options.videos < 1:
        parser.error(f"one video at least is needed; got --videos {options.videos}")
    return options


def check_models(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Take all miniatures where none is named, and refuse names that are none."""
    options.models = options.models or list(MODELS)
    if unknown := set(options.models).difference(MODELS):
        parser.error(f"no such miniature: {', '.join(sorted(unknown))}; there are {MODELS}")


class Results:
    """The lines of a results file, by what they are of.

    Args:
        path: of the file; it is whole at any moment.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._lines: list[Line] = [json.loads(line) for line in text.splitlines()]

    def find(self, key: Line) -> Line | None:
        """What was found with this very key, or nothing."""
        return next((line["found"] for line in self._lines if line["key"] == key), None)

    def add(self, key: Line, found: Line) -> None:
        """Keep a result."""
        self._lines.append({"key": key, "found": found})
        with output_file(self._path) as partial:
            lines = "".join(json.dumps(line) + "\n" for line in self._lines)
            partial.write_text(lines, encoding="utf-8")


@dataclass(frozen=True)
class Miniature:
    """A miniature: its network, and what tells its weights from others."""

    name: str
    model: Network
    facts: Line
    weights: str

    def bundle(self, folder: Path) -> Bundle:
        """Exported when it is first asked for."""
        return exported(self.model, folder / "bundles" / f"{self.name}-{self.weights}", self.facts)

    def key(self, options: argparse.Namespace, setting: str, seed: int) -> Line:
        """Of a result."""
        weights = self.weights
        if setting in BY_CONTRAST:
            weights += f"+{sha256_of(options.contrast[BY_CONTRAST.index(setting)])[:12]}"
        return {
            "part": options.part,
            "model": self.name,
            "setting": setting,
            "split": options.split,
            "seed": seed,
            "videos": options.videos,
            "weights": weights,
        }


def miniature(name: str) -> Miniature:
    """One with the weights that come with the package."""
    loaded, weights = shipped(name)
    return Miniature(name, loaded.model, loaded.facts, weights)


def videos_of(options: argparse.Namespace, seed: int, progress: Progress) -> DataSet:
    """The data set of a seed."""
    return data_set(options.folder / "videos", options.split, seed, options.videos, progress)


def accuracy(options: argparse.Namespace, results: Results, progress: Progress) -> Line:
    """Every miniature on every backend; the rows of the table."""
    rows: list[Line] = []
    for name in options.models:
        mini = miniature(name)
        found: dict[str, Figures] = {}
        for runs_on, precision in RUNS_ON.items():
            key = mini.key(options, runs_on, options.seed)
            if (known := results.find(key)) is None:
                data = videos_of(options, options.seed, progress)
                bundle = mini.bundle(options.folder)
                forget_texts()
                backend = backend_of(runs_on, mini.model, options.threads)
                with opened(bundle, backend, data, precision) as pipeline:
                    known = measured({runs_on: pipeline}, data, progress)[runs_on]
                results.add(key, known)
            found[runs_on] = known
        rows += accuracy_rows(name, found)
    told = f"{options.videos} videos of the world's {options.split} split, seed {options.seed}."
    return {"rows": rows, "markdown": [told, "", *accuracy_table(rows)]}


def backend_of(runs_on: str, model: Network, threads: int) -> Backend:
    """One of RUNS_ON."""
    if runs_on == TORCH:
        return TorchBackend(model, device="cpu", threads=threads)
    return (Fp16Emulation if "fp16" in runs_on else OnnxRuntime)("cpu", threads=threads)


def forget_texts() -> None:
    """Let the next backend embed the class names by itself, in a cache that is new."""
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="no-texts-")


def claims(options: argparse.Namespace, results: Results, progress: Progress) -> Line:
    """Every claim of the miniatures that were asked for; the rows of the tables."""
    rows, times = [], {}
    for name in options.models:
        mini = miniature(name)
        wanted = [claim for claim in CLAIMS if claim.model == name]
        names = list(dict.fromkeys(s for claim in wanted for s in (claim.best, *claim.others)))
        if options.contrast is None:
            names = [name for name in names if name not in BY_CONTRAST]
            wanted = [claim for claim in wanted if claim.best not in BY_CONTRAST]
        for seed in options.seeds:
            run_settings(mini, names, seed, options, results, progress)
        known = {
            setting: [results.find(mini.key(options, setting, seed)) for seed in options.seeds]
            for setting in names
        }
        rows += [row for claim in wanted for row in claim_rows(claim, known)]
        if CROPS in names:
            times = results.find(mini.key(options, TIMES, options.seeds[0]))
    if not rows:
        raise InputError("none of the claims can be told by what was asked for")
    seeds = ", ".join(map(str, options.seeds))
    told = (
        f"{options.videos} videos of each world, {options.split} split, seeds {seeds}; AP in "
        "percent, the mean of the worlds (least to most)."
    )
    lines = [told, "", *claims_table(rows), *times_table(times)]
    return {"rows": rows, "times": times, "markdown": lines}


def run_settings(
    mini: Miniature,
    names: Sequence[str],
    seed: int,
    options: argparse.Namespace,
    results: Results,
    progress: Progress,
) -> None:
    """Run the settings that are not known of a seed's videos, all together."""
    missing = [s for s in names if results.find(mini.key(options, s, seed)) is None]
    key = mini.key(options, TIMES, options.seeds[0])
    untimed = CROPS in names and results.find(key) is None
    if not missing and not untimed:
        return
    data, bundle = videos_of(options, seed, progress), mini.bundle(options.folder)
    all_of = settings_of(mini.model, bundle, options.contrast or ())
    if missing:
        with ExitStack() as stack:
            pipelines = {
                name: stack.enter_context(opened_setting(all_of.settings[name], data, options))
                for name in missing
            }
            forget = stack.enter_context(remembering(all_of.shared))
            found = measured(pipelines, data, progress, forget)
        for name, figures in found.items():
            results.add(mini.key(options, name, seed), figures)
    if untimed:
        progress("timing", 0, None)
        both = {name: all_of.settings[name].bundle for name in ("as released", CROPS)}
        results.add(key, seconds_of(both, data, TIMED, options.threads))


def opened_setting(setting: Setting, data: DataSet, options: argparse.Namespace) -> Any:
    """Its pipeline, on PyTorch."""
    backend = TorchBackend(setting.model, device="cpu", threads=options.threads)
    return opened(setting.bundle, backend, data, tracking=setting.tracking)


def write(options: argparse.Namespace, found: Line) -> None:
    """Print the table, and keep it and the JSON in the folder."""
    lines = found.pop("markdown")
    asked = {k: str(v) for k, v in vars(options).items() if k not in ("folder", "part")}
    texts = {"md": "\n".join(lines), "json": json.dumps({"asked": asked, **about(), **found})}
    for suffix, text in texts.items():
        with output_file(options.folder / f"{options.part}.{suffix}") as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    print(texts["md"])


def about() -> Line:
    """Versions of what took part."""
    import onnxruntime

    return {"tools": {**tool_versions(), "onnxruntime": onnxruntime.__version__}}


if __name__ == "__main__":
    main()
