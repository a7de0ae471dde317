"""Commands of the documentation parse; extras and files that it names exist."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import pytest
import typer

from openvis_rt.cli.main import app
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.table import markdown_table, support_table
from openvis_rt.training import command as training_command

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="reading pyproject.toml on 3.10 needs tomli")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Every `openvis ...` command of a page, from its code blocks and its inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`]+)`", prose.replace("\n", " "))
    pieces = [piece for line in "\n".join(blocks).splitlines() for piece in line.split(" && ")]
    return [
        re.sub(r"^\S*openvis ", "openvis ", piece.strip())
        for piece in [*pieces, *inline]
        if re.match(r"^\S*\bopenvis ", piece.strip())
    ]


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


def test_pages_have_commands():
    assert len(COMMANDS) > 15
    assert {"README.md", "jetson.md"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_the_documentation_parses(page, command):
    words = shlex.split(command, comments=True)[1:]
    group = typer.main.get_command(app)
    verb, arguments = words[0], words[1:]
    if "..." in command or "|" in words or command.endswith(" --help"):
        assert verb in group.commands
        return
    parsed = group.commands[verb].make_context(verb, arguments, resilient_parsing=not arguments)
    assert parsed.command.name == verb


def test_the_table_of_what_is_supported_is_what_the_code_says():
    assert markdown_table() in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert [row[1] for row in support_table()] == list(VARIANTS)


def test_extras_that_are_named_exist():
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        extra
        for page in PAGES
        for group in re.findall(r"pip install[^\n]*?\.\[([\w,]+)\]", page.read_text("utf-8"))
        for extra in group.split(",")
    }
    assert {"jetson", "pycuda", "rtx", "cpu"} <= named
    assert named <= held.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"\b((?:benchmarks|openvis_rt|tests)/[\w/]+\.py)\b", text):
        assert (ROOT / script).is_file(), script
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link


RECIPES = [
    (page.name, *found)
    for page in PAGES
    for found in re.findall(
        r"python -m (openvis_rt\.training\.\w+) ([^\n`]+)", page.read_text(encoding="utf-8")
    )
]


@pytest.mark.parametrize(("page", "module", "arguments"), RECIPES)
def test_a_recipe_of_the_documentation_parses(page, module, arguments, monkeypatch):
    pytest.importorskip("torch", reason="training needs the extra [export]")
    asked = []
    monkeypatch.setattr(training_command, "run_command", asked.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module was imported before
        runpy.run_module(module, run_name="__main__")
    app = asked[0]
    if not isinstance(app, typer.Typer):
        app = typer.Typer()
        app.command()(asked[0])
    parser, words = typer.main.get_command(app), shlex.split(arguments)
    if words[0] in getattr(parser, "commands", {}):
        parser, words = parser.commands[words[0]], words[1:]
    assert parser.make_context(module, words).params, page


def test_the_page_of_the_training_names_every_recipe():
    named = {module for page, module, _ in RECIPES if page == "training.md"}
    recipes = {
        f"openvis_rt.training.{path.stem}"
        for path in (ROOT / "openvis_rt" / "training").glob("*.py")
        if "run_command(" in path.read_text(encoding="utf-8") and path.stem != "command"
    }
    assert named | {"openvis_rt.training.world"} == recipes
