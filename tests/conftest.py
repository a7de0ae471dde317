"""Tiers with a time limit each, and what many tests share: tiny bundles, a small video, references.

Reference numbers of the public implementations are optional: the folder that the environment
variable OPENVIS_REFERENCE names, else ``../shared/reference`` beside the repository. With
OPENVIS_REQUIRE_REFERENCE=1 a test that misses them fails instead of being skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reference_numbers import reference_folder

from openvis_rt.bundle.bundle import MANIFEST, Bundle

TIERS = {
    "unit": 60,
    "fake_gpu": 180,
    "fuzz": 600,
    "faults": 600,
    "strangers": 600,
    "model": 900,
    "gpu": 900,
}  # seconds a test
HERE = Path(__file__).parent

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # as a shell starts its background jobs, and their children inherit it; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

FUZZED_A_MINUTE = 400  # cases of one test, at the most; one takes 5 to 300 ms
ALONE = "fake_gpu"  # this tier loads a CUDA driver that is none into its process


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long tests/fuzz may look for new cases, and how often tests/faults kills."""
    parser.addoption(
        "--fuzz-minutes",
        default=0.0,
        type=float,
        help="minutes of new fuzzed cases for each test of tests/fuzz; 0: the same few as in CI",
    )
    parser.addoption(
        "--fuzz-report",
        metavar="FILE",
        help="where tests/fuzz writes what its cases came to, a line of JSON for each border",
    )
    parser.addoption(
        "--kills", default=2, type=int, help="times that tests/faults kills each command"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Fuzz always the same cases, or new ones for as long as was asked."""
    with contextlib.suppress(ImportError):
        from hypothesis import HealthCheck, settings

        minutes = float(config.getoption("--fuzz-minutes"))
        settings.register_profile(
            "fuzz",
            max_examples=int(FUZZED_A_MINUTE * minutes) or 60,
            derandomize=not minutes,
            print_blob=True,  # a case that falls can be tried again anywhere
            deadline=None,  # tests/fuzz/borders.py has the limit
            database=None,
            suppress_health_check=[  # each case writes its file anew
                HealthCheck.function_scoped_fixture,
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
            ],
        )
        settings.load_profile("fuzz")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often each command is killed."""
    return int(request.config.getoption("--kills"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tier out that needs a process of its own, unless it is asked for by name."""
    if collection_path == HERE / ALONE and not any(ALONE in argument for argument in config.args):
        return True  # tests/unit/test_fake_gpu.py starts it
    return None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case of bytes by its parameter: bytes can differ between two processes, names not."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its tier's time limit; a test of no tier stops the run."""
    found = set()
    for item in items:
        if HERE not in item.path.parents:
            continue
        tier = item.path.relative_to(HERE).parts[0]
        if tier not in TIERS:
            raise pytest.UsageError(
                f"{item.path} is in no tier: tests live in {', '.join(f'tests/{t}' for t in TIERS)}"
            )
        found.add(tier)
        if item.get_closest_marker("timeout") is None:
            # without its fixtures, which the first test that asks makes for all of them
            item.add_marker(pytest.mark.timeout(TIERS[tier], func_only=True))
    if ALONE in found and len(found) > 1:
        raise pytest.UsageError(f"tests/{ALONE} needs a process of its own: name no other tests")


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference numbers, or a skip that says how to get them."""
    folder = reference_folder()
    if folder.is_dir():
        return folder
    if os.environ.get("OPENVIS_REQUIRE_REFERENCE") == "1":
        pytest.fail(f"reference numbers are required, and {folder} is not there")
    pytest.skip("no reference numbers: set OPENVIS_REFERENCE to their folder")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Iterator[Path]:
    """A bundle of the tiny model, exported once; read only (take ``bundle_copy`` to change it)."""
    pytest.importorskip("torch", reason="exporting needs the extra [export]")
    from tiny import export_tiny

    path = tmp_path_factory.mktemp("tiny") / "bundle"
    export_tiny(path)
    yield path
    Bundle.open(path)  # no test has changed it


def _linked(bundle: Path, target: Path) -> Path:
    """A copy whose files are links, since 30 MB a test would keep the disk busy for minutes."""
    shutil.copytree(bundle, target, copy_function=os.link)
    manifest = target / MANIFEST
    manifest.unlink()
    shutil.copyfile(bundle / MANIFEST, manifest)
    return target


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path) -> Path:
    """A copy of the tiny bundle to change: rewrite its manifest, replace, add and remove files.

    Its other files are links to the original, so one must be unlinked before its bytes are changed.
    """
    return _linked(tiny_bundle, tmp_path / "bundle")


@pytest.fixture(scope="session", autouse=True)
def tests_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache directory of every test that names none of its own."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


@pytest.fixture(scope="session")
def cached_bundle(tiny_bundle, tmp_path_factory) -> Path:
    """A copy of the tiny bundle that tests share: engines may come, nothing else changes."""
    return _linked(tiny_bundle, tmp_path_factory.mktemp("cached") / "bundle")


@pytest.fixture(scope="session")
def opened_bundle(cached_bundle) -> Bundle:
    """``cached_bundle``, opened and checked."""
    return Bundle.open(cached_bundle)


@pytest.fixture(scope="session")
def small_video(tmp_path_factory) -> Path:
    """Twelve frames of 180x120 with sound."""
    from openvis_rt.runtime.video.generated import write_sample_video

    path = tmp_path_factory.mktemp("video") / "small.mp4"
    write_sample_video(path, width=180, height=120, fps=10, seconds=1.2, objects=2)
    return path


@pytest.fixture
def openvis(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: exit code, stdout, stderr."""
    from openvis_rt.cli.main import main

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["openvis", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exc:
            code = exc.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def parts_of_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the verbs take bundles that have only the graphs and tensors that a test needs."""
    for verb in ("inspect", "build", "calibrate"):
        monkeypatch.setattr(f"openvis_rt.cli.{verb}.check_contract", lambda _: None)
