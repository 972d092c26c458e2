"""Pickles as data: the standard library's machine, with nothing in reach to call.

``pickle.load`` runs what a file tells it to. Here each name in a file becomes a class
of ours, whose call keeps the name and the arguments in a ``Record``; no name is looked
up. What the machine would do without asking is refused beforehand, by a scan of the
opcodes.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar, NoReturn, Protocol, cast

# These take objects from a registry of the process, or from buffers beside the file.
_OUTSIDE = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
# Opcodes that hash, and where on the stack they find the keys.
_KEYS = {
    "SETITEM": slice(1, None, 2),
    "SETITEMS": slice(1, None, 2),
    "DICT": slice(0, None, 2),
    "ADDITEMS": slice(1, None),
    "FROZENSET": slice(0, None),
}
# Protocols up to 2 write the module names of Python 2.
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_MAX_MEMO = 2**20

# What a damaged stream can make the machine or pickletools raise.
_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError),
    *(MemoryError, RecursionError, pickle.UnpicklingError),
)


class UnsafePickleError(ValueError):
    """A pickle asks for something that weights do not need. Nothing was executed."""


class Stream(Protocol):
    """What a pickle is read from: a file, ``io.BytesIO`` or ``mmap.mmap``."""

    def read(self, n: int, /) -> bytes: ...

    def readline(self) -> bytes: ...

    def tell(self) -> int: ...

    def seek(self, position: int, /) -> Any: ...


class Record:
    """An object that a pickle wanted to have made.

    A name in a pickle becomes a subclass of this, with its ``maker``.

    Attributes:
      maker: what the pickle wanted to call, dotted.
      args: the arguments of that call.
      state: what it wanted to hand to ``__setstate__`` or ``__dict__``, or None.
    """

    maker: ClassVar[str]
    build: ClassVar[Callable[..., Any] | None] = None
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Any:
        # Not __init__: the opcode NEWOBJ calls __new__ alone.
        if cls.build is not None:
            return cls.build(*args)
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        # Without this method the machine would set attributes, of classes as well.
        self.state = state


class Attributed(dict):
    """A dict whose attributes, such as ``OrderedDict._metadata``, are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


def is_name(value: Any) -> bool:
    """Whether the value is a name that a pickle holds and does not call."""
    return isinstance(value, type) and issubclass(value, Record)


def read_pickle(
    stream: Stream,
    *,
    where: str,
    builders: Mapping[str, Callable[..., Any]],
    is_known: Callable[[str, str], bool],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """One pickle of any protocol as plain containers, records and subclasses of these.

    Args:
      stream: stands at the first byte of the pickle, afterwards behind its last.
      where: the name of the file, for messages.
      builders: dotted name -> our own function that makes the value, where a container
        or a value is wanted instead of a ``Record``. What it returns must have a
        ``__setstate__``, or no attributes that a pickle could set.
      is_known: (module, name) -> whether the pickle may hold this name besides these.
      persistent: what a persistent id stands for; None where none may occur. The same
        holds for what it returns.

    Raises:
      UnsafePickleError: it holds another name, or something from outside the pickle.
      ValueError: it is cut off or damaged.
    """
    names: dict[str, type[Record]] = {}

    def refuse(what: str) -> NoReturn:
        raise UnsafePickleError(
            f"{where}: the pickle asks for {what}, which network weights do not "
            "need. It was refused; nothing in the file was executed."
        )

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type[Record]:
            module = _PYTHON2.get(module, module)
            dotted = f"{module}.{name}"
            if dotted not in builders and not is_known(module, name):
                refuse(dotted)
            if dotted not in names:
                build = builders.get(dotted)
                members = {"maker": dotted, "build": build and staticmethod(build)}
                names[dotted] = type("Record", (Record,), members)
            return names[dotted]

        def persistent_load(self, pid: Any) -> Any:
            if persistent is None:
                refuse("an object outside the pickle (a persistent id)")
            return persistent(pid)

    start = stream.tell()
    try:
        _scan(stream, refuse)
        stream.seek(start)
        return Unpickler(cast(IO[bytes], stream), encoding="latin1").load()
    except UnsafePickleError:
        raise
    except _DAMAGE as error:
        raise ValueError(
            f"{where}: the pickle is cut off or damaged near its byte "
            f"{stream.tell() - start}: {error}"
        ) from error


def _scan(stream: Stream, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses what would reach outside the file, or end the process.

    The hash of a tuple recurses: one that is nested a million deep overflows the stack,
    one that holds itself many times over never ends. So keys of dicts and elements of
    sets are no tuples of tuples; for this the depth of the tuples on the machine's
    stack is followed, 0 for what is no tuple.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for opcode, arg, position in pickletools.genops(cast(IO[bytes], stream)):
        name, taken = opcode.name, opcode.stack_before
        if name in _OUTSIDE:
            refuse(f"the opcode {name}")
        if name == "MARK":
            marks.append(len(stack))
            continue
        start = len(stack)
        if pickletools.markobject in taken:
            start = marks.pop()
            taken = taken[: taken.index(pickletools.markobject)]
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
            continue
        start -= len(taken)
        if start < (marks[-1] if marks else 0):
            raise ValueError(f"{name} takes more than the stack holds")
        depth = max(stack[start:], default=0)
        if name in _KEYS and max(stack[start:][_KEYS[name]], default=0) > 1:
            raise ValueError("a tuple of tuples as a key")
        del stack[start:]
        if name.endswith("GET"):
            stack.append(memo[cast(int, arg)])
        elif name.startswith("TUPLE"):
            stack.append(depth + 1)
        elif name in ("DUP", "MEMOIZE"):
            stack += [depth] * len(opcode.stack_after)
        else:
            stack += [0] * len(opcode.stack_after)
        if "PUT" in name or name == "MEMOIZE":
            key = len(memo) if arg is None else arg
            # The machine keeps its memo in an array of the highest index.
            if key > _MAX_MEMO + (position or 0):
                raise ValueError(f"the index {key} of its memo")
            memo[key] = stack[-1]
    if len(stack) or marks:
        raise ValueError("too many values are left")
