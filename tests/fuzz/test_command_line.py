"""The command line itself: every verb with options and values that its definition allows or not."""

from __future__ import annotations

import pytest
import typer
from borders import few, watched
from hypothesis import given
from hypothesis import strategies as st
from strange import TEXTS

from openvis_rt.cli.main import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CODES = (0, 2, 3, 4)
LONG = {"demo", "models", "doctor"}  # they work without an argument: only with a wrong one here
ESCAPES = ("\0", "\ud800", "..", "/")  # none that a system takes, and none that leads out of here
VALUES = st.sampled_from(
    [
        *(text for text in TEXTS if not any(escape in text for escape in ESCAPES)),
        *(
            "-1",
            "0",
            "1",
            "1e400",
            "nan",
            "99999999999999999999",
            "1x1",
            "0x0",
            "64x96",
            "65536x65536",
        ),
        *("missing.pth", ".", "missing/none", "clip-vis-r50-x", "cpu", "http:[", "-", "file\nname"),
        *("--", "a,b,,c", "😀", "%d{}"),
    ]
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A verb, some of its options, and some values."""
    verb = draw(st.sampled_from(sorted(COMMANDS)))
    options = [parameter for parameter in COMMANDS[verb].params if parameter.opts[0][:1] == "-"]
    words = [verb]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)):
        words.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
        if not getattr(option, "is_flag", False) or draw(st.integers(0, 9)) == 0:
            words.append(draw(VALUES))
    for _ in range(draw(st.integers(0, 3))):
        words.insert(draw(st.integers(1, len(words))), draw(VALUES))
    return [*words, "--no-such-option"] if verb in LONG else words


@few(25)
@given(words=command_lines())
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given
def test_any_command_line(openvis, tmp_path, monkeypatch, words):
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.chdir(home)
    err = ""

    def use() -> str:
        nonlocal err
        code, _, err = openvis(*words)
        assert code in CODES, f"exit code {code}: {err[-2000:]}"
        return f"exit {code}"

    end = watched(use)
    assert end == "exit 0" or err.strip(), "it failed without a word"
    assert not list(home.rglob("*partial*"))
