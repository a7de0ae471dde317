"""The categories of the generated world: phrases such as "striped star" or "fish with eyes".

A category is one attribute of one shape. A colour is seen on plain bodies only, a texture has two
colours drawn by chance, and bodies with a part have colours that no attribute names,
so that an object is of one category and no other.

Novel are all categories of :data:`NOVEL_SHAPES`, which training never shows, and every fifth
combination of the other shapes, whose attribute and shape training shows apart, but never together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ATTRIBUTES",
    "BASE",
    "CATEGORIES",
    "NOVEL",
    "NOVEL_SHAPES",
    "SHAPES",
    "Attribute",
    "WorldCategory",
]

_HELD_OUT = 5  # of so many combinations of an attribute with known shapes, one is novel


@dataclass(frozen=True, slots=True)
class Attribute:
    """What is said of a shape.

    Attributes:
        name: such as ``red`` or ``eyes``.
        kind: what it decides of the picture.
        phrase: a template for the shape's name.
    """

    name: str
    kind: Literal["colour", "texture", "part"]
    phrase: str


@dataclass(frozen=True, slots=True)
class WorldCategory:
    """One class of objects.

    Attributes:
        phrase: its name.
        attribute: what is said of the shape.
        shape: its outline.
        novel: whether training never shows it.
    """

    phrase: str
    attribute: Attribute
    shape: str
    novel: bool


def _attributes() -> Iterator[Attribute]:
    for colour in ("red", "orange", "yellow", "green", "blue", "purple", "white", "black"):
        yield Attribute(colour, "colour", f"{colour} {{}}")
    for texture in ("striped", "dotted", "checkered", "zigzag"):
        yield Attribute(texture, "texture", f"{texture} {{}}")
    yield Attribute("eyes", "part", "{} with eyes")


ATTRIBUTES = tuple(_attributes())
NOVEL_SHAPES = ("gear", "butterfly", "boat", "key")
SHAPES = (
    *("disc", "square", "triangle", "star", "heart", "ring", "cross", "arrow", "moon"),
    *("flower", "house", "tree", "fish", "bolt"),
    *NOVEL_SHAPES,
)
_NO_ROOM = {"eyes": {"ring", "moon", "key", "bolt", "gear"}}  # too thin for a part


def _categories() -> Iterator[WorldCategory]:
    for number, attribute in enumerate(ATTRIBUTES):
        for place, shape in enumerate(SHAPES):
            if shape not in _NO_ROOM.get(attribute.name, ()):
                novel = shape in NOVEL_SHAPES or (number + 2 * place) % _HELD_OUT == 0
                yield WorldCategory(attribute.phrase.format(shape), attribute, shape, novel)


CATEGORIES = tuple(_categories())
BASE = tuple(index for index, category in enumerate(CATEGORIES) if not category.novel)
NOVEL = tuple(index for index, category in enumerate(CATEGORIES) if category.novel)
