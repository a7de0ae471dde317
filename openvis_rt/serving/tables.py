"""A batch's results in one place: the official file, and tables for data frames.

    results.json        YTVIS's and LV-VIS's form, all videos, by ``video_id``; in video mode
    categories.json     what its category ids mean
    videos.parquet      a row for each video: how it ended, frames, tracks, seconds, error
    instances.parquet   a row for each object of each frame that is shown: box, score, track

Without pyarrow the tables are CSV files.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openvis_rt.errors import InputError, OutputError
from openvis_rt.files import output_errors, output_file
from openvis_rt.given_files import given_json
from openvis_rt.printable import printable
from openvis_rt.runtime.video.results import read_frame_log, write_categories, write_results
from openvis_rt.serving.index import BatchFolder, Record

__all__ = ["write_tables"]

Row = dict[str, Any]
Progress = Callable[[int], None]

_VIDEOS = {  # column -> its type in Arrow
    "video_id": "int64",
    "folder": "string",
    "source": "string",
    "status": "string",
    "frames": "int64",
    "tracks": "int64",
    "seconds": "float64",
    "backend": "string",
    "attempts": "int64",
    "error": "string",
    "worker": "string",
}
_INSTANCES = {
    "video_id": "int64",
    "frame": "int64",
    "time": "float64",
    "track_id": "int64",
    "category_id": "int64",
    "name": "string",
    "score": "float64",
    "x": "int64",
    "y": "int64",
    "width": "int64",
    "height": "int64",
}
_LARGEST = 1 << 30  # bytes of one video's results
_ROWS = 50_000  # of a group of rows, which are in memory at once


def write_tables(
    folder: BatchFolder,
    names: Iterable[str],
    records: list[Record],
    *,
    entries: bool,
    progress: Progress = lambda _: None,
) -> list[Path]:
    """Write the files of this module's docstring, each as a whole or not at all.

    Args:
        folder: the batch's.
        names: of the categories.
        records: of the videos, finished and failed, by id.
        entries: whether the videos have ``results.json``.
        progress: told of videos that are read.

    Returns:
        the files.

    Raises:
        OutputError: the place cannot be written, or a video's files were removed meanwhile.
    """
    done = [record for record in records if record.status == "finished"]
    write_categories(folder.path / "categories.json", list(names))
    files = [folder.path / "categories.json"]
    if entries:
        files.append(folder.path / "results.json")
        write_results(files[-1], _entries(folder, done))
    files.append(_write(folder.path / "videos", _VIDEOS, map(_video_row, records)))
    files.append(
        _write(folder.path / "instances", _INSTANCES, _instance_rows(folder, done, progress))
    )
    return files


def _entries(folder: BatchFolder, records: list[Record]) -> Iterator[Row]:
    for record in records:
        path = folder.output(record.video) / "results.json"
        with _removed(path):
            _refuse_changed(folder, record)
            entries = given_json(path, _LARGEST)
            if not isinstance(entries, list):
                raise InputError(f"{path} is no list of results")
        yield from entries


def _video_row(record: Record) -> Row:
    report = record.report or {}
    return {
        "video_id": record.video.id,
        "folder": record.video.folder,
        "source": record.video.source,
        "status": record.status,
        **{key: report.get(key) for key in ("frames", "tracks", "seconds", "backend")},
        "attempts": record.attempts,
        "error": record.error or None,
        "worker": record.worker,
    }


def _instance_rows(folder: BatchFolder, records: list[Record], progress: Progress) -> Iterator[Row]:
    for number, record in enumerate(records, 1):
        path = folder.output(record.video) / "frames.jsonl"
        with _removed(path):
            _refuse_changed(folder, record)
            frames = read_frame_log(path)
        for frame in frames:
            for found in frame.instances:
                yield {
                    "video_id": record.video.id,
                    "frame": frame.index,
                    "time": frame.time,
                    **{k: getattr(found, k) for k in ("track_id", "category_id", "name", "score")},
                    **dict(zip(("x", "y", "width", "height"), found.box, strict=True)),
                }
        progress(number)


def _refuse_changed(folder: BatchFolder, record: Record) -> None:
    if (name := folder.changed_file(record)) is not None:
        raise InputError(f"{name} has another SHA-256 than when it was written")


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, InputError) as exc:
        raise OutputError(
            f"{path} was removed or changed after it was written ({exc}). Remove the video's "
            "folder and run the same command again: it makes it anew."
        ) from exc


def _write(stem: Path, columns: dict[str, str], rows: Iterable[Row]) -> Path:
    """A table as Parquet, or as CSV; an earlier one in the other form goes."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        path, other, write = stem.with_suffix(".csv"), stem.with_suffix(".parquet"), _write_csv
    else:
        path, other, write = stem.with_suffix(".parquet"), stem.with_suffix(".csv"), _write_parquet
    with output_file(path) as partial, output_errors(path):
        write(partial, columns, rows)
    other.unlink(missing_ok=True)
    return path


def _write_csv(path: Path, columns: dict[str, str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.DictWriter(file, list(columns))
        table.writeheader()
        for row in rows:  # a table is looked at in a terminal, too
            table.writerow({k: printable(v) if isinstance(v, str) else v for k, v in row.items()})


def _write_parquet(path: Path, columns: dict[str, str], rows: Iterable[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    with parquet.ParquetWriter(path, schema) as table:
        group: list[Row] = []
        for row in rows:
            group.append({name: _text(row[name]) for name in columns})
            if len(group) == _ROWS:
                table.write_table(pa.Table.from_pylist(group, schema))
                group = []
        table.write_table(pa.Table.from_pylist(group, schema))


def _text(value: Any) -> Any:
    """Names from a command line may hold bytes that are no text, which Arrow does not take."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
