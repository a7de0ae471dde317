"""Text from strangers, made safe for a terminal, a log or a label.

A file name, a key of a checkpoint or a field of a manifest may hold letters that move the cursor,
change colours, or turn the direction of what follows. They are shown by their number instead.
"""

from __future__ import annotations

import re

__all__ = ["printable", "printable_json", "shortened", "without_password"]

_LONGEST = 300  # letters of a name in a message

# control characters but the new line and the tab; those that turn the direction of writing, or
# have no width; halves of pairs, which no output can encode. The two joiners, U+200C and U+200D,
# stay: Persian, Indic scripts and emoji are written with them, and they move nothing
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
# but for the one that advice writes; a path that was made of an address has one slash
_ADDRESS = re.compile(r"(?:(?<=://)|(?<=[a-z]:/)(?!/))(?!user:password@)\S+")
# all up to the last @ before the path; or, of one with a slash that should have been %2F, up to the
# last @ of all, unless what stands before that slash is a port
_SIGN_IN = re.compile(r"^([^/?#:@]*):(?:[^/?#]*|(?![0-9]*[/?#])\S*)@")
# cameras and servers take secrets by these names, too, in a query or as a part of the path
_SECRET = re.compile(
    r"([?&;/_](?:[a-z]+[-_]?)?(?:passwo?r?d|passphrase|pass|pwd|psw|token|secret|key|auth|signature|sig))"
    r"=[^&\s#;'\"]*",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """The text with an escape in place of each letter that a terminal would obey."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_json(text: str) -> str:
    """JSON with an escape of JSON's own in place of each such letter: whoever reads it gets all."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(text: str) -> str:
    """A name as a message shows it; strangers make them as long as they like."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def without_password(text: str) -> str:
    """The text with ``***`` in place of the password of each address in it.

    That is the one before ``@``, and what is called ``password``, ``token`` or alike in its query.
    """
    return _ADDRESS.sub(_hidden, text)


def _hidden(address: re.Match[str]) -> str:
    return _SECRET.sub(r"\1=***", _SIGN_IN.sub(r"\1:***@", address[0]))
