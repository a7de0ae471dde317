"""Class names to look for in a data set, and what its categories they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openvis_rt.errors import VocabularyError
from openvis_rt.evaluation.annotations import Annotations
from openvis_rt.runtime.video.results import VideoResult
from openvis_rt.vocabulary import Vocabulary

__all__ = ["ClassIds", "vocabulary_for"]


@dataclass(frozen=True)
class ClassIds:
    """What a pipeline's classes are in a data set.

    Attributes:
        ids: for each class of the vocabulary its category id; None for one that the data set does
            not have, whose instances are left out.
        one_per_track: report each track once, under its best class, as an evaluation without
            classes wants it.
    """

    ids: tuple[int | None, ...]
    one_per_track: bool = False

    def entries(self, result: VideoResult, video_id: int) -> list[dict[str, Any]]:
        """The entries of a results file, best first."""
        entries, seen = [], set()
        for instance, entry in zip(result.instances, result.to_results(video_id), strict=True):
            category = self.ids[instance.category_id - 1]
            if category is None or (self.one_per_track and instance.track_id in seen):
                continue
            seen.add(instance.track_id)
            entries.append({**entry, "category_id": category})
        return entries


def vocabulary_for(
    annotations: Annotations, words: Vocabulary | None = None, *, class_agnostic: bool = False
) -> tuple[Vocabulary, ClassIds]:
    """The names to open a pipeline with, and the ids of its classes.

    Args:
        annotations: whose category names are taken, in the order of their ids.
        words: other names to look for. Without ``class_agnostic`` every category must be one of
            them, by its name or by one of its synonyms; case does not matter.
        class_agnostic: the classes of the results do not count.

    Raises:
        VocabularyError: the vocabulary does not have a category, or the categories' names cannot
            be told apart.
    """
    categories = annotations.categories
    if words is None:
        ids: tuple[int | None, ...] = tuple(category.id for category in categories)
        return Vocabulary(tuple(c.name for c in categories)), ClassIds(ids, class_agnostic)
    if class_agnostic:
        return words, ClassIds((categories[0].id,) * len(words), one_per_track=True)
    place = {}
    for index, name in reversed(list(enumerate(words.names))):
        for phrase in (*words.synonyms_of(name), name):
            place[phrase.lower()] = index
    found: list[int | None] = [None] * len(words)
    missing = []
    for category in categories:
        at = place.get(category.name.strip().lower())
        if at is None or found[at] is not None:
            missing.append(category.name)
        else:
            found[at] = category.id
    if missing:
        names = ", ".join(repr(name) for name in missing[:5])
        raise VocabularyError(
            f"the vocabulary has no class of its own for {len(missing)} of the "
            f"{len(categories)} categories of the annotations, such as {names}. Add them, or leave "
            "--vocabulary out to look for the annotations' own names."
        )
    return words, ClassIds(tuple(found))
