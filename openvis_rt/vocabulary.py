"""Class names, their synonyms, and the prompts around them.

Behaviour of `clipvis/clipvis_video.py`: a name is split at commas into synonyms, underscores stay,
and each synonym stands in 14 templates (VILD's list).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openvis_rt.errors import VocabularyError
from openvis_rt.given_files import given_bytes, json_from_bytes

__all__ = ["NAME_LISTS", "VILD_PROMPTS", "Vocabulary", "as_clip_reads", "prompts_for"]

NAME_LISTS = ("coco", "lvis", "miniature")
"""Lists of names that come with the package; the last is of the world of the miniatures."""

# full width, which East Asian keyboards give; and curled quotes
_SAME = {letter: letter - 0xFEE0 for letter in range(0xFF01, 0xFF5F)}
_SAME |= {0x2018: ord("'"), 0x2019: ord("'"), 0x201C: ord('"'), 0x201D: ord('"')}
_LARGEST = 4 << 30  # bytes; names may be in a data set's annotation file

VILD_PROMPTS = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)


@dataclass(frozen=True)
class Vocabulary:
    """Names of the classes to look for.

    Attributes:
        names: one for each class, as the user gave them; ``"monkey, ape"`` is one class with two
            synonyms.
        others: names that take part and are never reported: what an object is called that is none
            of ``names``. See :meth:`among`.
    """

    names: tuple[str, ...]
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be classified: nothing, empty names, names that stand twice."""
        if not self.names:
            raise VocabularyError("the vocabulary is empty; give at least one class name")
        classes = self.names + self.others
        for index, name in enumerate(classes):
            if not isinstance(name, str):
                raise VocabularyError(
                    f"class {index + 1} of the vocabulary is of type {type(name).__name__}; a name "
                    "is a string"
                )
            if not all(map(as_clip_reads, self.synonyms_of(name))):
                raise VocabularyError(
                    f"class {index + 1} of the vocabulary, {name!r}, has an empty name or synonym"
                )
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise VocabularyError(
                    f"class {index + 1} of the vocabulary, {name!r}, holds bytes that are no UTF-8"
                )
        seen: dict[str, int] = {}
        for index, name in enumerate(classes):
            phrases = ",".join(map(as_clip_reads, self.synonyms_of(name)))
            if phrases in seen:
                first = classes[seen[phrases]]
                same = "" if first == name else f": CLIP reads it as it reads {first!r}"
                raise VocabularyError(
                    f"{name!r} stands twice in the vocabulary (classes {seen[phrases] + 1} "
                    f"and {index + 1}){same}; its score would be split between them. Remove one."
                )
            seen[phrases] = index

    @classmethod
    def of(cls, names: Vocabulary | Iterable[str]) -> Vocabulary:
        """A vocabulary from names, or itself.

        Raises:
            VocabularyError: the names are unusable, or one string, whose letters would be taken.
        """
        if isinstance(names, str):
            raise VocabularyError(f"class names are a list such as [{names!r}]; got a string")
        if not isinstance(names, Iterable | Vocabulary):
            raise VocabularyError(
                f"class names are a list such as ['cat', 'dog']; got {type(names).__name__}"
            )
        return names if isinstance(names, Vocabulary) else cls(tuple(names))

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """Read class names.

        Args:
            path: a text file with one class a line (empty lines and lines that begin with ``#`` are
                left out), or JSON: a list of names, a list of ``{"name": ...}``, or a YTVIS /
                LV-VIS annotation file with ``categories``, whose ids must be 1, 2, ...

        Raises:
            VocabularyError: the file is missing or malformed.
        """
        data = given_bytes(path, _LARGEST, VocabularyError)
        if path.suffix.lower() != ".json":
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError as exc:
                raise VocabularyError(f"the vocabulary {path} is no UTF-8 text: {exc}") from exc
            lines = (line.strip() for line in text.splitlines())
            return cls(tuple(line for line in lines if line and not line.startswith("#")))
        try:
            entries = json_from_bytes(data, f"the vocabulary {path}", VocabularyError)
            if isinstance(entries, dict):
                entries = sorted(entries["categories"], key=lambda entry: entry["id"])
                if [entry["id"] for entry in entries] != list(range(1, len(entries) + 1)):
                    raise VocabularyError(
                        f"the category ids of {path} are not 1, 2, ... without a gap, as "
                        "results.json numbers classes; give the names as a list, and map ids "
                        "1, 2, ... to yours"
                    )
            if not isinstance(entries, list):
                raise TypeError(f"got {type(entries).__name__}")
            return cls(tuple(e if isinstance(e, str) else e["name"] for e in entries))
        except (ValueError, KeyError, TypeError) as exc:
            raise VocabularyError(
                f"{path} is not a vocabulary: a JSON list of names, of {{'name': ...}}, or an "
                f"object with 'categories' is needed ({type(exc).__name__}: {exc})"
            ) from exc

    def among(self, others: Iterable[str]) -> Vocabulary:
        """The same names, which compete with others that are not reported.

        Args:
            others: names; those that share a synonym with a name of this vocabulary, or with one
                before them, are left out, as far as CLIP can tell them apart.
        """
        taken = {as_clip_reads(p) for name in self.names for p in self.synonyms_of(name)}
        kept: list[str] = []
        for name in others:
            phrases = {as_clip_reads(phrase) for phrase in self.synonyms_of(name)}
            if not phrases & taken:
                kept.append(name)
                taken |= phrases
        return Vocabulary(self.names, tuple(kept))

    @classmethod
    def named(cls, name: str) -> Vocabulary:
        """A list that comes with the package: ``coco`` (80), ``lvis`` (1,203) or ``miniature``.

        Raises:
            VocabularyError: there is no list of that name.
        """
        if name not in NAME_LISTS:
            raise VocabularyError(
                f"there is no list of names {name!r}; there are {', '.join(NAME_LISTS)}, or give "
                "a file"
            )
        return cls.from_file(Path(__file__).parent / "names" / f"{name}.txt")

    @staticmethod
    def synonyms_of(name: str) -> list[str]:
        """The phrases of one class: split at ``", "`` or ``","``."""
        return [part.strip() for part in name.split(",")]

    @property
    def phrases(self) -> list[str]:
        """Every synonym of every class and then of the others: the text classifier's rows."""
        return [p for name in self.names + self.others for p in self.synonyms_of(name)]

    @property
    def rows_of_class(self) -> list[int]:
        """For each class, and then for each of the others, the number of its rows."""
        return [len(self.synonyms_of(name)) for name in self.names + self.others]

    def __len__(self) -> int:
        return len(self.names)


def as_clip_reads(text: str) -> str:
    """The text as CLIP reads it, for comparing: texts that are equal after it have one embedding.

    As open_clip cleans text, but with the standard library alone: entities of HTML become their
    letters, curled quotes and letters of full width plain ones, runs of white space one space, and
    all letters lower-case. Encodings that ftfy would mend are left.
    """
    clean = unicodedata.normalize("NFC", html.unescape(html.unescape(text)).translate(_SAME))
    return re.sub(r"\s+", " ", clean).strip().lower()


def prompts_for(phrase: str, templates: Sequence[str]) -> list[str]:
    """The phrase in every template."""
    return [template.replace("{}", phrase) for template in templates]
