"""What a file is by its first bytes, so that one that holds no weights is refused with its reason.

This module needs the standard library alone: a web page that was saved in place of a checkpoint is
told for what it is where torch is not installed, too. Nothing is unpickled.
"""

from __future__ import annotations

import pickletools
import re
import stat
from pathlib import Path
from typing import Literal

from openvis_rt.checkpoints.archives import names_in_archive
from openvis_rt.errors import CheckpointError
from openvis_rt.given_files import file_kind

__all__ = ["Form", "form_of", "refuse_foreign_file"]

Form = Literal["zip", "pickle", "safetensors"]
"""Torch's own format, its older one, and the other."""

_HEAD = 1024  # bytes that tell a format
_TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # pickled first by torch.save before zip files
_MAGIC_WITHIN = 32  # bytes
_LARGEST_HEADER = 100_000_000  # bytes that safetensors allows
_PICKLE_LOOKED_AT = 1 << 20  # bytes in which the first name of a pickle is looked for
_TWICE = "download it again and compare its size"
_OTHERS = (  # offset, bytes, what has them there, what to do
    (0, b"\x1f\x8b", "a gzip file", "unpack it with gunzip first"),
    (0, b"BZh", "a bzip2 file", "unpack it with bunzip2 first"),
    (0, b"\xfd7zXZ\x00", "an xz file", "unpack it with unxz first"),
    (0, b"(\xb5/\xfd", "a zstd file", "unpack it with unzstd first"),
    (257, b"ustar", "a tar archive", "unpack it and give the file of weights that is in it"),
    (0, b"7z\xbc\xaf'\x1c", "a 7z archive", "unpack it and give the file of weights that is in it"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the file with `git lfs pull`"),
    (0, b"\x93NUMPY", "an array of numpy", "`openvis run --classifier` takes such files"),
    (0, b"\x89HDF\r\n", "an HDF5 file", "give the weights as torch or safetensors write them"),
    (0, b"GGUF", "a GGUF file", "give the weights as torch or safetensors write them"),
    (4, b"ftyp", "a video", "`openvis run` takes videos"),
)
_CONVERSION = (
    "python -c \"import pickle, torch; w = pickle.load(open('{old}', 'rb'))['model']; "
    "torch.save({{'model': {{k: torch.as_tensor(v) for k, v in w.items()}}}}, '{new}')\""
)


def refuse_foreign_file(path: Path) -> None:
    """Refuse a file that can hold no weights that are read here.

    Args:
        path: a file. Torch's own formats (zip, and its older pickle) and safetensors pass, though
            they may be damaged further on or hold something else than a checkpoint.

    Raises:
        CheckpointError: the file is of another format; the message names it and says what to do.
    """
    form_of(path)


def form_of(path: Path) -> Form:
    """Which format a file has by its first bytes, whatever its name is.

    Raises:
        CheckpointError: as :func:`refuse_foreign_file`; or there is no such file, or it is no
            regular one.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(
                f"{path} is no checkpoint file but {file_kind(found.st_mode)}; give the file of "
                "weights itself"
            )
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError as exc:
        raise CheckpointError(f"there is no checkpoint file {path}") from exc
    except (OSError, ValueError) as exc:  # a name with a zero byte is a ValueError
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {getattr(exc, 'strerror', None) or exc}"
        ) from exc
    if reason := _reason(path, head, found.st_size):
        raise CheckpointError(f"{path} ({found.st_size} bytes) {reason}")
    if head.startswith(b"PK"):
        return "zip"
    return "pickle" if _TORCH_MAGIC in head[:_MAGIC_WITHIN] else "safetensors"


def _reason(path: Path, head: bytes, size: int) -> str:
    """Why the file is no checkpoint; empty if it may be one."""
    if not head:
        return f"is empty, so it is no checkpoint; {_TWICE}."
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _reason_of_zip(path)
    if _TORCH_MAGIC in head[:_MAGIC_WITHIN]:
        return ""
    header = int.from_bytes(head[:8], "little")  # bytes, if it is a safetensors file
    if head[8:9] == b"{" and header <= _LARGEST_HEADER:
        whole = header + 8 <= size
        return "" if whole else f"is cut short within the {header} bytes of its header; {_TWICE}."
    if re.match(rb"\x80[\x02-\x05]", head):
        return _reason_of_pickle(path)
    return _reason_of_others(path, head)


def _reason_of_others(path: Path, head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", head, re.DOTALL | re.IGNORECASE)
        words = f" ({title.group(1).decode('utf-8', 'replace')!r})" if title else ""
        return (
            f"is a web page{words}, not a checkpoint: what was saved is the page that the download "
            "starts from. Open its address in a browser and download the file itself."
        )
    for offset, magic, what, advice in _OTHERS:
        if head.startswith(magic, offset):
            return f"is {what}, not a checkpoint; {advice}."
    if path.suffix == ".pkl":  # of protocol 0 or 1, which have no mark
        return _reason_of_pickle(path)
    if part := {".onnx": "an ONNX graph", ".plan": "an engine"}.get(path.suffix):
        return (
            f"is {part}, not a checkpoint, and there is no bundle around it that says more. "
            "`openvis inspect` takes the bundle's folder, or a file in it."
        )
    begin = head[:40].decode("ascii", "replace").splitlines()[0]
    if begin.isprintable() and begin.isascii():
        return f"is a text that begins with {begin!r}, not a checkpoint; {_TWICE}."
    return (
        f"begins with the bytes {head[:8].hex(' ')}, as no checkpoint of torch or safetensors "
        f"does. It may be cut short or of another format; {_TWICE}."
    )


def _reason_of_zip(path: Path) -> str:
    try:
        names = names_in_archive(path)
    except CheckpointError:
        return f"is a zip file without its end, so it is cut short or damaged; {_TWICE}."
    if any(name.endswith("/data.pkl") for name in names):
        return ""
    held = ", ".join(name[:60] for name in names[:3]) or "nothing"
    return f"is a zip file of {held}, not a checkpoint: torch.save puts a data.pkl into it."


def _reason_of_pickle(path: Path) -> str:
    name = _first_name(path)
    found = f" (it names {name})" if name else ""
    return (
        f"is a plain pickle{found}, which could run code here; nothing was loaded. "
        "If you trust its source, and it holds weights under 'model' as detectron2's model zoo has "
        "them, convert it once:\n  "
        + _CONVERSION.format(old=path, new=path.with_name(f"{path.stem}-weights.pth"))
    )


def _first_name(path: Path) -> str:
    """The first class or function that a pickle would import; empty if none is found."""
    with path.open("rb") as file:
        data = file.read(_PICKLE_LOOKED_AT)
    strings: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in {"GLOBAL", "INST"}:
                return str(argument).replace(" ", ".")
            if code.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except Exception:  # noqa: S110 - what is damaged, or no pickle at all, has no name
        pass
    return ""
