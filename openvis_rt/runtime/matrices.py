"""Matrices that were computed before: classifiers and image embeddings from `.npy` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError

__all__ = ["Matrix", "matrix_from"]

Floats = npt.NDArray[np.float32]
Matrix = str | Path | npt.NDArray[np.floating]
"""An array, or a file of one."""

_PICKLES = {  # what else is at hand of these, and how to make a matrix of it
    "image embeddings": ". Public files of them are pickled dicts of tensors; convert one video "
    "once:\n  python -c \"import numpy, torch; d = torch.load('FILE', map_location='cpu'); "
    "numpy.save('video.npy', torch.cat([d[k] for k in sorted(d) if 'VIDEO/' in k]).float())\""
}


def matrix_from(source: Matrix, width: int, what: str) -> Floats:
    """A matrix, checked.

    Args:
        source: a ``.npy`` file or an array: floats [rows, ``width``].
        width: D of the model.
        what: it is, for messages.

    Returns:
        float32 [rows, width].

    Raises:
        InputError: there is no such file, it cannot be read without unpickling, or it holds
            anything else or numbers that are not finite.
    """
    if isinstance(source, str | Path):
        name, array = str(source), _read(Path(source), what)
    else:
        name, array = "the array", np.asarray(source)
    if array.ndim != 2 or array.dtype.kind != "f" or len(array) == 0 or array.shape[1] != width:
        raise InputError(
            f"{name} holds {array.dtype} {list(array.shape)}; {what} of this model are floats "
            f"[rows, {width}]"
        )
    with np.errstate(over="ignore"):  # beyond FP32 is infinite, and refused below
        numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise InputError(f"{name} holds NaN or infinity; {what} are finite")
    return numbers


def _read(path: Path, what: str) -> npt.NDArray[np.generic]:
    if not path.is_file():
        kind = "is a directory, or no regular file" if path.exists() else "does not exist"
        raise InputError(f"{path} {kind}; {what} are read from a .npy file")
    if path.suffix != ".npy":
        pickled = path.suffix in (".pkl", ".pth", ".pt")
        advice = _PICKLES.get(what, "").replace("FILE", str(path)) if pickled else ""
        raise InputError(f"{what} are read from a .npy file; got {path}{advice}")
    try:
        with path.open("rb") as file:  # numpy.load would take archives and pickles as well
            array: npt.NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
    except PermissionError as exc:
        raise InputError(f"{path} may not be read: {exc.strerror}") from exc
    except Exception as exc:  # a damaged header is parsed as Python, and may ask for any size
        if "Object arrays" in str(exc):
            raise InputError(
                f"{path} holds pickled Python objects, which could run code; nothing was loaded. "
                "Save the numbers alone: numpy.save(FILE, numpy.asarray(rows, 'float32'))"
            ) from exc
        raise InputError(f"{path} is damaged, or no .npy file: {exc}") from exc
    return array
