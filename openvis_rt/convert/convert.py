"""Every form that finished results can take, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openvis_rt.convert.finished import FinishedRun
from openvis_rt.errors import InputError
from openvis_rt.files import refuse_inputs
from openvis_rt.runtime.recording import RUN_FILES

__all__ = ["FORMATS", "ConvertOptions", "check_form", "convert_results"]

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class ConvertOptions:
    """What a form may need besides the results.

    Attributes:
        video: the file or folder of images that was run; for ``html`` and ``rerun``.
        quality: x264's CRF of the video in a page, 0 to 51; lower is better and larger.
        overwrite: replace a folder of ``mots``; files are always replaced.
        progress: told the phase, frames done and frames in all.
    """

    video: str | None = None
    quality: int | None = None
    overwrite: bool = False
    progress: Progress = field(default=lambda *_: None, compare=False)


Convert = Callable[[FinishedRun, Path, ConvertOptions], dict[str, Any]]


def _html(run: FinishedRun, output: Path, options: ConvertOptions) -> dict[str, Any]:
    from openvis_rt.convert.page.page import PAGE_QUALITY, write_page

    quality = PAGE_QUALITY if options.quality is None else options.quality
    write_page(run, output, options.video, quality=quality, progress=options.progress)
    return {}


def _rerun(run: FinishedRun, output: Path, options: ConvertOptions) -> dict[str, Any]:
    from openvis_rt.convert.rerun import write_rerun

    return {"reduced_by": write_rerun(run, output, options.video, options.progress)}


def _coco(run: FinishedRun, output: Path, options: ConvertOptions) -> dict[str, Any]:
    from openvis_rt.convert.coco import write_coco

    return {"annotations": write_coco(run, output, _counting(options))}


def _mots(run: FinishedRun, output: Path, options: ConvertOptions) -> dict[str, Any]:
    from openvis_rt.convert.mots import write_mots

    progress = _counting(options)
    return {"classes": write_mots(run, output, overwrite=options.overwrite, progress=progress)}


def _mot(run: FinishedRun, output: Path, options: ConvertOptions) -> dict[str, Any]:
    from openvis_rt.convert.boxes import write_mot

    return {"boxes": write_mot(run, output, _counting(options))}


def _csv(run: FinishedRun, output: Path, options: ConvertOptions) -> dict[str, Any]:
    from openvis_rt.convert.boxes import write_csv

    return {"rows": write_csv(run, output, _counting(options))}


def _counting(options: ConvertOptions) -> Callable[[int], None]:
    return lambda done: options.progress("writing", done, None)


FORMATS: dict[str, tuple[str, Convert]] = {
    "html": (".html", _html),
    "rerun": (".rrd", _rerun),
    "coco": (".json", _coco),
    "mots": ("", _mots),
    "mot": (".txt", _mot),
    "csv": (".csv", _csv),
}
"""Of each name the end of its file's name (empty for a folder) and what writes it."""


def convert_results(
    folder: Path, to: str, output: Path, options: ConvertOptions | None = None
) -> dict[str, Any]:
    """Write finished results in another form.

    Args:
        folder: what ``openvis run`` or :func:`~openvis_rt.run_video` wrote.
        to: one of :data:`FORMATS`.
        output: a file or, for ``mots``, a folder; it takes its name when it is whole.
        options: see :class:`ConvertOptions`.

    Returns:
        what the form has to tell, as JSON types.

    Raises:
        InputError: the folder is no run's, the form is unknown, or it cannot hold the results.
        VideoError: the video cannot be read, or is another one.
        UnavailableError: a library is missing.
        OutputError: the output cannot be written, or would replace what is read.
    """
    write = check_form(to, output)
    options = options or ConvertOptions()
    refuse_inputs(output, *(folder / name for name in RUN_FILES), options.video)
    return write(FinishedRun.open(folder), output, options)


def check_form(to: str, output: Path) -> Convert:
    """What writes a form, before anything is read.

    Raises:
        InputError: the form is unknown, or the file's name is another one's.
        UnavailableError: a library is missing.
    """
    if to not in FORMATS:
        raise InputError(f"no form {to!r} is known; there are {', '.join(FORMATS)}")
    suffix, write = FORMATS[to]
    if suffix and output.suffix.lower() != suffix:
        raise InputError(f"{to} is a file that ends in {suffix}; got {output}")
    if to in ("html", "rerun"):
        from openvis_rt.convert.film import check_h264

        check_h264()
    if to == "rerun":
        from openvis_rt.convert.rerun import require_rerun

        require_rerun()
    return write
