"""The pickle beside torch's tensors, looked through before it is loaded.

``torch.load(weights_only=True)`` runs nothing of a file's, but it believes the file's numbers: 50
bytes make a ``bytearray`` of 5 GB, a million tuples inside of one another end the process where
they become a key, and integers that were chosen to have the same hash take minutes in a dict. What
passes here costs about what its length says.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO
from warnings import catch_warnings, simplefilter

from openvis_rt.errors import CheckpointError

__all__ = ["check_pickles"]

_LARGEST = 16 << 20  # bytes; those of a model with 2,000 tensors have 300 kB
_MOST_STEPS = 400_000  # opcodes; a tensor has some 40
_MOST_LARGE_NUMBERS = 10_000  # integers beyond 32 bits, whose hashes can be chosen
_LARGEST_TUPLE = 2_000  # items with those of tuples in it; Python's random state has 627
_LONGEST_NAME = 300  # letters of a function's
_FUNCTION = -1
_BUILDERS = frozenset({"builtins bytearray", "__builtin__ bytearray"})  # of what no weights need


def check_pickles(file: IO[bytes], path: Path, count: int) -> None:
    """Refuse pickles that would cost much more time or memory than their length.

    Args:
        file: where they stand one behind the other; at most 16 MiB of it are read.
        path: the checkpoint, for messages.
        count: how many there are.

    Raises:
        CheckpointError: they are damaged, written by another protocol than torch's, too long, or
            hold what torch would make more of than a checkpoint needs.
    """
    data = BytesIO(file.read(_LARGEST + 1))
    steps = 0
    for _ in range(count):
        looking = _Look(path)
        try:
            with catch_warnings():
                simplefilter("ignore", DeprecationWarning)  # of a damaged text's escapes
                for code, argument, _ in pickletools.genops(data):
                    steps += 1
                    if data.tell() > _LARGEST or steps > _MOST_STEPS:
                        raise _too_long(path)
                    looking.at(code.name, argument)
        except (ValueError, LookupError, TypeError) as exc:
            if data.tell() >= _LARGEST:
                raise _too_long(path) from exc
            raise CheckpointError(
                f"{path} is not a readable checkpoint: its pickle is damaged "
                f"({str(exc)[:100] or type(exc).__name__}). It may be cut short; download it again "
                "and compare its size."
            ) from exc


def _too_long(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: the pickle beside its tensors has more than {_LARGEST >> 20} MiB or "
        f"{_MOST_STEPS} steps, and that of a model with 2,000 tensors has 0.3 MiB and 80000; "
        'nothing was loaded. If you trust its source, save its weights alone: {"model": state_dict}'
    )


class _Look:
    """Follows a pickle as torch's reader does, with the size of each tuple in its place.

    Args:
        path: the checkpoint, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # a tuple's items with those of tuples in it, a function's mark, 0 for all else
        self.stack: list[int] = []
        self.below: list[list[int]] = []  # the stacks under each mark
        self.memo: dict[int, int] = {}
        self.large_numbers = 0

    def at(self, name: str, argument: object) -> None:
        """Take one step.

        Raises:
            CheckpointError: it asks for what no checkpoint needs.
            LookupError: the pickle takes what is not there.
        """
        if name in _PUSHED:
            self.stack.append(0)
        elif name == "GLOBAL":
            self.function(str(argument))
        elif name in _STEPS:
            _STEPS[name](self)
        elif name in _TAKEN:
            self.last(_TAKEN[name])
        elif name in {"BINPUT", "LONG_BINPUT"} and isinstance(argument, int):
            self.memo[argument] = self.stack[-1]
        elif name in {"BINGET", "LONG_BINGET"} and isinstance(argument, int):
            self.stack.append(self.memo[argument])
        elif name not in {"PROTO", "STOP"}:
            raise CheckpointError(
                f"{self.path} was pickled with the step {name}, which torch does not read back "
                "safely; save it again with torch.save(..., pickle_protocol=2) or as safetensors"
            )
        if name == "LONG1" and isinstance(argument, int) and argument.bit_length() > 32:
            self.large_numbers += 1
            if self.large_numbers > _MOST_LARGE_NUMBERS:
                self._refuse(f"it has more than {_MOST_LARGE_NUMBERS} integers beyond 32 bits")

    def function(self, name: str) -> None:
        """Push a function or a class, of its module and name."""
        if name in _BUILDERS:
            self._refuse(f"it makes a {name.rpartition(' ')[2]}")
        if len(name) > _LONGEST_NAME:
            self._refuse(f"it names a function by {len(name)} letters")
        self.stack.append(_FUNCTION)

    def tuple_of(self, items: list[int]) -> None:
        """Push a tuple of what was taken."""
        size = len(items) + sum(max(0, item) for item in items)
        if size > _LARGEST_TUPLE:
            self._refuse(f"it has a tuple of more than {_LARGEST_TUPLE} items, with those inside")
        self.stack.append(max(1, size))

    def to_mark(self) -> list[int]:
        """Take what is above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        """Begin a new stack."""
        self.below.append(self.stack)
        self.stack = []

    def last(self, count: int) -> list[int]:
        """Take the last ones."""
        if len(self.stack) < count:
            raise IndexError("nothing is left on its stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def call(self) -> None:
        """A function's result, of its arguments: `torch.Size` is a tuple again."""
        function, arguments = self.last(2)
        if function != _FUNCTION:  # torch would put its whole text into an error
            self._refuse("it calls what is no function")
        self.stack.append(arguments)

    def storage(self) -> None:
        """What a tensor's numbers are in, of its name."""
        self.last(1)
        self.stack.append(0)

    def _refuse(self, why: str) -> None:
        raise CheckpointError(
            f"{self.path} is no checkpoint that is read here: {why}, which weights need not; "
            "nothing was loaded. If you trust its source, load it yourself and save its weights "
            'alone, as safetensors or with torch.save({"model": state_dict}, ...).'
        )


_PUSHED = frozenset(
    {
        *("NONE", "NEWFALSE", "NEWTRUE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"),
        *("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"),
    }
)
_TAKEN = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_STEPS: dict[str, Callable[[_Look], object]] = {
    "MARK": _Look.mark,
    "APPENDS": _Look.to_mark,
    "SETITEMS": _Look.to_mark,
    "EMPTY_TUPLE": lambda look: look.tuple_of([]),
    "TUPLE": lambda look: look.tuple_of(look.to_mark()),
    "TUPLE1": lambda look: look.tuple_of(look.last(1)),
    "TUPLE2": lambda look: look.tuple_of(look.last(2)),
    "TUPLE3": lambda look: look.tuple_of(look.last(3)),
    "REDUCE": _Look.call,
    "NEWOBJ": _Look.call,
    "BINPERSID": _Look.storage,
}
