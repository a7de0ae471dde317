"""Groups of classes that are reported beside the whole: base and novel, common and uncommon.

A split file is JSON: the name of each group, and its classes by id or by name::

    {"base": [1, 2, 5], "novel": ["unicycle", "ferret"]}

The lists of BURST are facts of the data set: TAO's ids of the 78 classes that COCO has as well
(``knowns`` in ``burst_ow_base.py`` of TrackEval, after Liu et al., Opening up Open-World Tracking),
the classes that its evaluation leaves out (``distractors`` in the same place), and those that TAO
takes together (``merged`` in ``tao_categories.json`` there).
"""

from __future__ import annotations

from pathlib import Path

from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotations import Annotations
from openvis_rt.evaluation.fields import read_json

__all__ = ["BURST_COMMON", "BURST_DISTRACTORS", "BURST_MERGED", "read_split"]

BURST_COMMON = frozenset(
    (
        *(4, 13, 34, 35, 36, 41, 45, 58, 60, 78, 79, 81, 91, 95, 99, 118, 126, 133, 139, 154, 174),
        *(185, 211, 221, 229, 235, 237, 276, 299, 347, 371, 382, 392, 428, 429, 452, 475, 480, 502),
        *(544, 579, 621, 625, 642, 699, 714, 717, 729, 747, 779, 805, 829, 852, 896, 926, 937, 961),
        *(979, 980, 982, 993, 1001, 1018, 1038, 1057, 1091, 1097, 1099, 1115, 1117, 1122, 1132),
        *(1135, 1144, 1155, 1162, 1215, 1229),
    )
)

BURST_DISTRACTORS = frozenset(
    (
        *(20, 63, 108, 180, 188, 204, 212, 247, 303, 403, 407, 415, 490, 504, 507, 513, 529, 567),
        *(569, 588, 672, 691, 702, 708, 711, 720, 736, 737, 798, 813, 815, 827, 831, 851, 877, 883),
        *(912, 971, 976, 1130, 1133, 1134, 1169, 1184, 1220),
    )
)

BURST_MERGED = {504: 347, 720: 347, 912: 529, 967: 529, 207: 554, 153: 943, 201: 1175}


def read_split(path: Path, annotations: Annotations) -> dict[str, frozenset[int]]:
    """Groups of classes from a split file: name -> category ids.

    A class may be in no group, and in several.

    Raises:
        InputError: it is missing, of another form, or has a class that the annotations do not have.
    """
    data = read_json(path, "split file")
    example = 'needed is an object such as {"base": [1, 2], "novel": ["ferret"]}'
    if not isinstance(data, dict) or not data:
        raise InputError(f"{path} is no split file: {example}")
    ids = {category.id for category in annotations.categories}
    by_name = {category.name.strip().lower(): category.id for category in annotations.categories}
    groups = {}
    for name, members in data.items():
        if not isinstance(members, list) or not members:
            raise InputError(f"{path}: the group {name!r} lists no class; {example}")
        found, unknown = set(), []
        for member in members:
            known = member if type(member) is int else by_name.get(str(member).strip().lower())
            if known in ids and known is not None:
                found.add(known)
            else:
                unknown.append(repr(member))
        if unknown:
            raise InputError(
                f"{path}: the group {name!r} has {len(unknown)} classes that the annotations do "
                f"not have: {', '.join(unknown[:5])}. Give the ids or names of the annotation file."
            )
        groups[name] = frozenset(found)
    return groups
