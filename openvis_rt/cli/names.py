"""The names that a run looks for, and those that compete with them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from openvis_rt.errors import InputError
from openvis_rt.systems import VARIANTS
from openvis_rt.vocabulary import NAME_LISTS, Vocabulary

__all__ = [
    "ClassesOption",
    "OnlyOption",
    "OtherOption",
    "OthersOption",
    "VocabularyOption",
    "default_list",
    "embedded_names",
    "given_names",
    "names_beside",
    "words_beside",
]

_LOOK_FOR = "What to look for"
_HANDFUL = 20  # names; who gives more has thought of what else there is

ClassesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        "-c",
        metavar="NAME",
        rich_help_panel=_LOOK_FOR,
        help="A class; may be repeated. Synonyms: 'monkey, ape'.",
    ),
]
VocabularyOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_LOOK_FOR,
        help="Class names: one a line, or YTVIS/LV-VIS JSON.",
    ),
]
OtherOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_LOOK_FOR,
        help="A name that takes part and is not reported; may be repeated.",
    ),
]
OthersOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        rich_help_panel=_LOOK_FOR,
        help=f"More such names: {', '.join(NAME_LISTS)}, or a file. A few -c names bring coco's "
        "where names share an object's score (CLIP-VIS, InstFormer); a file of names brings none.",
    ),
]
OnlyOption = Annotated[
    bool,
    typer.Option(
        "--only",
        rich_help_panel=_LOOK_FOR,
        help="Nothing but the given names takes part, so every object is one of them.",
    ),
]


def given_names(classes: list[str] | None, file: Path | None) -> Vocabulary:
    """What ``-c`` or ``--vocabulary`` name.

    Raises:
        InputError: both, or neither.
        VocabularyError: names that cannot be used.
    """
    if classes and file is not None:
        raise InputError("give class names with --class or with --vocabulary, not both")
    if file is not None:
        return Vocabulary.from_file(file)
    if not classes:
        raise InputError("no class to look for; give --class NAME (repeat it) or --vocabulary FILE")
    return Vocabulary(_as_utf8(classes))


def _as_utf8(words: Iterable[str]) -> tuple[str, ...]:
    """Arguments whose bytes are UTF-8, also where Python took them for ASCII: in the locale C."""
    found = []
    for word in words:
        try:
            found.append(os.fsencode(word).decode("utf-8"))
        except UnicodeError:  # refused in words by whoever looks at it
            found.append(word)
    return tuple(found)


def names_beside(
    other: list[str] | None, others: str | None, default: str, *, only: bool
) -> tuple[str, ...]:
    """Names that compete with the given ones and are not reported.

    Args:
        other: of ``--other``.
        others: of ``--others``: the name of a list that comes with the package, or a file.
        default: the list to take where ``others`` names none; empty for none.
        only: of ``--only``.

    Raises:
        InputError: some were given, and ``--only`` as well.
        VocabularyError: there is no such list, or names that cannot be used.
    """
    if only and (other or others):
        raise InputError("--only looks for the given names alone; leave out --other and --others")
    if only:
        return ()
    listed = others or default
    given = _as_utf8(other or ())
    if not listed:
        return given
    known = listed in NAME_LISTS
    words = Vocabulary.named(listed) if known else Vocabulary.from_file(Path(listed))
    return (*given, *words.names)


def default_list(variant: str, words: Vocabulary, *, from_file: bool) -> str:
    """The list that competes without being asked for: where a few names share an object's score."""
    few = len(words) < _HANDFUL and not from_file
    return VARIANTS[variant].other_names if few and variant in VARIANTS else ""


def words_beside(
    variant: str, words: Vocabulary, default: str, *, asked: bool, from_file: bool
) -> str:
    """What competes with a few names where nobody asked for it, in a line; empty if that is plain.

    Args:
        variant: the model's.
        words: the names, with those beside them.
        default: of :func:`default_list`.
        asked: ``--others`` or ``--only`` says it.
        from_file: ``--vocabulary`` has the names.
    """
    if asked:
        return ""
    if default:
        return (
            f"{len(words.others)} more names ({default}) take part and are not reported, so that "
            "not every object is one of yours; --only looks for yours alone"
        )
    usual = VARIANTS[variant].other_names if variant in VARIANTS else ""
    if usual and from_file and len(words) < _HANDFUL and not words.others:
        return (
            "the names of the file compete with each other alone, so that every object is one of "
            f"them; --others {usual} lets more names take part"
        )
    return ""


def embedded_names(lists: str | None, usual: str) -> tuple[str, ...]:
    """The names that an export embeds ahead, each once.

    Args:
        lists: of ``--names``: names of lists with commas between them, ``none``, or None.
        usual: the list to take where nothing is asked for; empty for none.

    Raises:
        VocabularyError: there is no such list.
    """
    asked = (usual if lists is None else lists).split(",")
    named = [name.strip() for name in asked if name.strip() not in ("", "none")]
    names = [name for listed in named for name in Vocabulary.named(listed).names]
    return tuple(dict.fromkeys(names))
