"""Torch's zip files, checked before they are loaded: nothing packed, nothing flipped, nothing huge.

``torch.save`` stores its records as they are and the zip keeps a CRC-32 of each; ``torch.load``
does not look at them, so that one flipped bit would become a weight of 1e36. What is checked here
is what torch loads: a file that two readers of zip files could understand in two ways is refused.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from openvis_rt.checkpoints.pickles import check_pickles
from openvis_rt.errors import CheckpointError

__all__ = ["check_archive", "names_in_archive"]

_LARGEST_DIRECTORY = 8 << 20  # bytes; a record has 46 and its name in it
_PIECE = 1 << 22  # bytes read at a time
_END, _LOCATOR = 22, 20  # bytes of a zip's end without a comment, and of what is before it


class _Bounded:
    """A file of whose directory no more is read at once than a checkpoint's has."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.opened = file, False
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_DIRECTORY and not self.opened:
            raise zipfile.BadZipFile(f"its directory would have {size} bytes")
        return self._file.read(size)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file, open; whatever is wrong with it is a CheckpointError."""
    try:
        with path.open("rb") as file:
            bounded = _Bounded(file)
            with zipfile.ZipFile(bounded) as archive:
                bounded.opened = True
                yield archive
    except CheckpointError:
        raise
    except Exception as exc:  # damaged headers end in almost any error of the library
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is a damaged zip file "
            f"({str(exc)[:200] or type(exc).__name__}); it may be cut short. Download it again "
            "and compare its size."
        ) from exc


def names_in_archive(path: Path) -> list[str]:
    """The names of a zip file's records.

    Raises:
        CheckpointError: it has no directory that can be read; it is cut short or damaged.
    """
    with _archive(path) as archive:
        return list(archive.namelist())


def check_archive(path: Path) -> None:
    """Refuse a zip file that ``torch.save`` cannot have written, or that was damaged since.

    Args:
        path: a zip file; it is read once.

    Raises:
        CheckpointError: a record is packed, of another length than the file says, or has another
            checksum; two records have one name; the directory is not where the file's end says; or
            the pickle beside the tensors asks for too much.
    """
    with _archive(path) as archive:
        records = archive.infolist()
        _check_form(records, path)
        if _directories(path) != {archive.start_dir}:
            raise zipfile.BadZipFile("its directory is not where its end says")
        for record in records:
            _check_sum(archive, record, path)
        for record in records:
            if record.filename.lower().endswith("/data.pkl"):
                with archive.open(record) as pickled:
                    check_pickles(pickled, path, 1)


def _check_form(records: list[zipfile.ZipInfo], path: Path) -> None:
    """Names, sizes and packing, before anything of the records is read."""
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise CheckpointError(
                f"{path}: {record.filename[:100]!r} is packed or encrypted, and torch.save packs "
                "nothing; unpack the file and save its weights again with torch.save or as "
                "safetensors"
            )
    twice = [name for name, n in Counter(r.filename.lower() for r in records).items() if n > 1]
    if twice:
        raise CheckpointError(
            f"{path} has two records of the name {twice[0][:100]!r}, as torch.save writes none; it "
            "is damaged, or was changed by another program. Save its weights again with torch.save"
        )
    claimed, size = sum(record.file_size for record in records), path.stat().st_size
    if claimed > size:
        raise CheckpointError(
            f"{path} has {size} bytes, and its records would have {claimed}; it is damaged or made "
            "to look larger. Download it again and compare its size"
        )


def _directories(path: Path) -> set[int]:
    """Where the file's last bytes say that the directory begins; torch writes it in two forms."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END - _LOCATOR))
        locator, end = file.read(_LOCATOR), file.read()
        places = {int.from_bytes(end[16:20], "little")} - {0xFFFFFFFF}  # more than 4 GiB
        if not end.startswith(b"PK\x05\x06"):
            return set()
        if locator.startswith(b"PK\x06\x07"):
            file.seek(int.from_bytes(locator[8:16], "little"))
            places.add(int.from_bytes(file.read(56)[48:], "little"))
    return places


def _check_sum(archive: zipfile.ZipFile, record: zipfile.ZipInfo, path: Path) -> None:
    found = length = 0
    with archive.open(record) as file:
        file._expected_crc = None  # type: ignore[attr-defined]  # it is compared below, in words
        while piece := file.read(_PIECE):
            found, length = zlib.crc32(piece, found), length + len(piece)
    if length != record.file_size or (found != record.CRC and record.CRC):
        raise CheckpointError(
            f"{path}: {record.filename[:100]!r} has another checksum than when it was written, so "
            "some of its bytes were changed; download the file again. (Where it was saved after "
            "torch.serialization.set_crc32_options(False), save it again without.)"
        )
