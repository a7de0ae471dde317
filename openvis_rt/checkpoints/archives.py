"""Torch's zip files, checked before they are loaded: nothing packed, nothing flipped, nothing huge.

``torch.save`` stores its records as they are and the zip keeps a CRC-32 of each; ``torch.load``
does not look at them, so that one flipped bit would become a weight of 1e36.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from openvis_rt.errors import CheckpointError

__all__ = ["check_archive"]

_LARGEST_PICKLE = 64 << 20  # bytes; that of a model with 2,000 tensors has 300 kB
_MOST_RECORDS = 200_000
_PIECE = 1 << 22  # bytes read at a time


def check_archive(path: Path) -> None:
    """Refuse a zip file that ``torch.save`` cannot have written, or that was damaged since.

    Args:
        path: a zip file; it is read once.

    Raises:
        CheckpointError: a record is packed, of another length than the file says, or has another
            checksum; or the pickle beside the tensors is far too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if len(records) > _MOST_RECORDS:
                raise CheckpointError(f"{path} has {len(records)} records, as no checkpoint has")
            for record in records:
                _check_form(record, path)
            for record in records:
                _check_sum(archive, record, path)
    except CheckpointError:
        raise
    except Exception as exc:  # damaged headers end in almost any error of the library
        raise CheckpointError(
            f"{path} is a damaged zip file ({exc or type(exc).__name__}); download it again and "
            "compare its size"
        ) from exc


def _check_form(record: zipfile.ZipInfo, path: Path) -> None:
    if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
        raise CheckpointError(
            f"{path}: {record.filename!r} is packed or encrypted, and torch.save packs nothing; "
            "unpack the file and save its weights again with torch.save or as safetensors"
        )
    if record.filename.endswith("/data.pkl") and record.file_size > _LARGEST_PICKLE:
        raise CheckpointError(
            f"{path}: the pickle beside its tensors has {record.file_size} bytes, and that of a "
            f"checkpoint has at most {_LARGEST_PICKLE}; nothing was loaded"
        )


def _check_sum(archive: zipfile.ZipFile, record: zipfile.ZipInfo, path: Path) -> None:
    found = length = 0
    with archive.open(record) as file:
        file._expected_crc = None  # type: ignore[attr-defined]  # it is compared below, in words
        while piece := file.read(_PIECE):
            found, length = zlib.crc32(piece, found), length + len(piece)
    if length != record.file_size or (found != record.CRC and record.CRC):
        raise CheckpointError(
            f"{path}: {record.filename!r} has another checksum than when it was written, so some "
            "of its bytes were changed; download the file again. (Where it was saved after "
            "torch.serialization.set_crc32_options(False), save it again without.)"
        )
