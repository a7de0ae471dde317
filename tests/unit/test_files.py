"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from openvis_rt import files
from openvis_rt.errors import OutputError
from openvis_rt.files import output_directory, output_file


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def ours(folder: Path) -> bool:
    return set(names(folder)) <= {"old", "new"}


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a script of its own; it may end itself in any way."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_a_directory_takes_its_name_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "er" / "out"
    with output_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(target.parent) == ["out"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_existing_directory_is_kept_unless_it_may_be_replaced(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(OutputError, match="--overwrite"), output_directory(target):
        pytest.fail("the block must not run")
    with pytest.raises(KeyError), output_directory(target, overwrite=True, ours=ours):
        raise KeyError
    assert names(target) == ["old"]
    with output_directory(target, overwrite=True, ours=ours) as folder:
        (folder / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


def test_what_is_not_ours_is_never_replaced(tmp_path):
    target = tmp_path / "videos"
    target.mkdir()
    (target / "a.mp4").write_text("the only copy")
    (target / "old").write_text("old")
    for refuse in ({"ours": ours}, {}):
        with (
            pytest.raises(OutputError, match=r"not made by openvis.*yourself"),
            output_directory(target, overwrite=True, **refuse),
        ):
            pytest.fail("the block must not run")
    assert names(target) == ["a.mp4", "old"]
    assert names(tmp_path) == ["videos"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_while_the_block_ran_is_not_replaced(tmp_path, overwrite):
    target = tmp_path / "out"

    def take_the_name() -> None:
        with output_directory(target, overwrite=overwrite, ours=ours):
            target.mkdir()
            (target / "mine").write_text("mine")

    with pytest.raises(OutputError, match=r"exists already|not made by openvis"):
        take_the_name()
    assert names(target) == ["mine"]
    assert names(tmp_path) == ["out"]


def test_an_empty_directory_is_replaced_when_asked(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with output_directory(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(target) == ["new"]


def test_a_link_to_a_directory_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("old")
    target = tmp_path / "out"
    target.symlink_to("real")
    with output_directory(target, overwrite=True, ours=ours) as folder:
        (folder / "new").write_text("new")
    assert not target.is_symlink()
    assert names(target) == ["new"]
    assert names(tmp_path / "real") == ["old"]
    assert names(tmp_path) == ["out", "real"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_where_a_directory_is_wanted_is_refused(tmp_path, overwrite):
    target = tmp_path / "out"
    target.write_text("old")
    with (
        pytest.raises(OutputError, match="not a directory"),
        output_directory(target, overwrite=overwrite, ours=lambda _: True),
    ):
        pytest.fail("the block must not run")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_nothing_and_is_not_renamed(tmp_path, error):
    def interrupt(path: Path) -> None:
        path.write_text("1")
        raise error

    with pytest.raises(error), output_directory(tmp_path / "out") as folder:
        interrupt(folder / "a")
    with pytest.raises(error), output_file(tmp_path / "out.txt") as path:
        interrupt(path)
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from openvis_rt.files import output_directory
with output_directory(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["out", "out[1]", "a b ü"])
def test_litter_of_a_killed_process_is_removed_by_the_next_one(tmp_path, name):
    target = tmp_path / name
    assert python(KILLED, target).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert not target.exists()
    with output_directory(target):
        pass
    assert names(tmp_path) == [name]


KILLED_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from openvis_rt import files
from openvis_rt.files import output_directory
files._exchanged = lambda *_: False  # as where the file system cannot
left, rename = int(sys.argv[2]), Path.rename
def rename_some(self, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(self, target)
Path.rename = rename_some
with output_directory(Path(sys.argv[1]), overwrite=True, ours=lambda _: True) as folder:
    (folder / "new").write_text("new")
"""


@pytest.mark.parametrize(("renames", "kept"), [(0, "old"), (1, "old"), (2, "new"), (3, "new")])
def test_a_process_killed_while_it_replaces_loses_nothing(tmp_path, renames, kept):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    code = python(KILLED_AT_RENAME, target, renames).returncode
    assert code == (0 if renames == 3 else -signal.SIGKILL)
    assert target.exists() == (renames != 1)
    with pytest.raises(OutputError, match="exists already"), output_directory(target):
        pytest.fail("the block must not run")
    assert names(target) == [kept]
    assert names(tmp_path) == ["out"]


KILLED_AROUND_THE_EXCHANGE = """
import os, signal, sys
from pathlib import Path
from openvis_rt import files
exchanged = files._exchanged
def killed(one, other):
    if sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    assert exchanged(one, other)
    os.kill(os.getpid(), signal.SIGKILL)
files._exchanged = killed
with files.output_directory(Path(sys.argv[1]), overwrite=True, ours=lambda _: True) as folder:
    (folder / "new").write_text("new")
"""


@pytest.mark.parametrize(("when", "kept"), [("before", "old"), ("after", "new")])
def test_two_directories_change_their_names_at_one_moment(tmp_path, when, kept):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not files._exchanged(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two names")
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    assert python(KILLED_AROUND_THE_EXCHANGE, target, when).returncode == -signal.SIGKILL
    assert names(target) == [kept]
    with output_directory(target, overwrite=True, ours=lambda _: True):
        pass
    assert names(tmp_path) == ["a", "b", "out"]


def test_a_file_system_without_locks_takes_outputs_and_clears_nothing_up(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks")

    (tmp_path / ".partial-out-12345678").mkdir()  # another process may be writing it
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with output_directory(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "out") == ["new"]
    assert (tmp_path / ".partial-out-12345678").is_dir()
    with pytest.raises(OSError, match="no locks"):
        files.lock_directory(tmp_path)


def test_an_error_while_it_replaces_brings_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def fail(self: Path, name: Path) -> Path:
        if name == target and self.name.startswith(".partial-"):
            raise OSError(errno.EIO, "broken", str(name))
        return rename(self, name)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    with (
        pytest.raises(OutputError, match="broken"),
        output_directory(target, overwrite=True, ours=ours),
    ):
        pass
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_what_a_running_process_parked_is_left_alone(tmp_path, monkeypatch):
    """Another one starts between the two renames of the first."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def start_another(self: Path, name: Path) -> Path:
        if name == target and self.name.startswith(".partial-"):
            monkeypatch.undo()
            with pytest.raises(KeyError), output_directory(target):
                raise KeyError
        return rename(self, name)

    monkeypatch.setattr(Path, "rename", start_another)
    with output_directory(target, overwrite=True, ours=ours) as folder:
        (folder / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("running", "starting"), [("out-2", "out"), ("out", "out"), ("out", "*"), ("out", "o*")]
)
def test_work_that_is_still_running_is_no_litter(tmp_path, running, starting):
    with output_directory(tmp_path / running, overwrite=True) as folder:
        (folder / "work").write_text("hours of it")
        other = threading.Thread(target=_make, args=(tmp_path / starting,))
        other.start()
        other.join()
        assert (folder / "work").is_file()
    assert names(tmp_path / running) == ["work"]


def _make(path: Path) -> None:
    with output_directory(path, overwrite=True):
        pass


def test_a_place_below_a_file_cannot_be_written_and_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"), output_directory(tmp_path / "file/out"):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="cannot write"), output_file(tmp_path / "file/out.txt"):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, a place nobody can write")
def test_a_read_only_place_says_so():
    with pytest.raises(OutputError, match="/proc/out"), output_directory(Path("/proc/out")):
        pytest.fail("the block must not run")


def test_the_working_directory_itself_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError), output_directory(Path(), overwrite=True):
        pass
    assert names(tmp_path) == ["mine"]


FULL = """
import resource, sys
from pathlib import Path
from openvis_rt import files
from openvis_rt.errors import OutputError
from openvis_rt.files import output_directory, output_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as good as a full disk
target, kind = Path(sys.argv[1]), sys.argv[2]
try:
    if kind == "file":
        with output_file(target) as path:
            path.write_bytes(bytes(2000))
    else:
        with output_directory(target, overwrite=True, ours=lambda _: True) as folder:
            (folder / "a").write_bytes(bytes(2000))
except OutputError as exc:
    print(exc)
    sys.exit(exc.exit_code)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_full_disk_says_so_and_keeps_what_was_there(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("old")
    else:
        target.mkdir()
        (target / "old").write_text("old")
    ended = python(FULL, target, kind)
    assert ended.returncode == 2, ended.stderr
    assert "the disk is full" in ended.stdout
    assert names(tmp_path) == ["out"]
    assert (target if kind == "file" else target / "old").read_text() == "old"


def test_a_file_takes_its_name_at_the_end_with_the_users_rights(tmp_path):
    target = tmp_path / "new" / "a.json"
    with output_file(target) as path:
        path.write_text("1")
        assert not target.exists()
        assert path.suffix == ".json"
    assert target.read_text() == "1"
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert names(target.parent) == ["a.json"]


# whose error it is


def of_another_file(place: Path) -> None:
    (place.parent / "no" / "source").read_bytes()


def of_nothing_named(_: Path) -> None:
    raise ConnectionResetError(errno.ECONNRESET, "reset by peer")


def of_the_output(place: Path) -> None:
    (place / "no" / "such" / "folder").write_text("")


def of_the_output_as_target(place: Path) -> None:
    source = place.parent / "source"
    source.write_text("")
    try:
        source.replace(place / "no" / "such" / "folder")
    finally:
        source.unlink()


def of_a_full_disk(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")  # as write() gives it, without a name


@pytest.mark.parametrize("kind", [output_file, output_directory])
@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (of_another_file, FileNotFoundError, "source"),
        (of_nothing_named, ConnectionResetError, "reset by peer"),
        (of_the_output, OutputError, "cannot write .*/out: "),
        (of_the_output_as_target, OutputError, "cannot write .*/out: "),
        (of_a_full_disk, OutputError, r"cannot write .*/out: the disk is full"),
    ],
)
def test_only_errors_of_writing_become_output_errors(tmp_path, kind, fail, error, message):
    with pytest.raises(error, match=message), kind(tmp_path / "out") as place:
        fail(place)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [output_file, output_directory])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_folders_made_for_a_failed_run_go_again(tmp_path, kind, error):
    (tmp_path / "mine").mkdir()
    with pytest.raises(error), kind(tmp_path / "mine" / "deep" / "er" / "out"):
        raise error
    assert names(tmp_path / "mine") == []


@pytest.mark.parametrize("kind", [output_file, output_directory])
def test_folders_that_others_use_by_now_stay(tmp_path, kind):
    def fail() -> None:
        with kind(tmp_path / "deep" / "er" / "out"):
            (tmp_path / "deep" / "others").write_text("others")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names(tmp_path / "deep") == ["others"]
