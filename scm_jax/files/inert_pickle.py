"""Pickles as data: a pickle machine that can look up nothing and call nothing.

``pickle.load`` runs what a file tells it to. Here the opcodes are interpreted by hand
(``pickletools`` decodes their arguments), a name stays a ``Global``, and what the file
would have called becomes a ``Record`` of the name and its arguments. Plain containers
and values are the only real objects.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol, cast

# What pickletools decodes to the value itself.
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRESH = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
# Protocols up to 2 write the module names of Python 2.
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}

# What a damaged stream can make the machine or pickletools raise.
_DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, TypeError)


class UnsafePickleError(ValueError):
    """A pickle asks for something that weights do not need. Nothing was executed."""


class Stream(Protocol):
    """What a pickle is read from: a file, ``io.BytesIO`` or ``mmap.mmap``."""

    def read(self, n: int, /) -> bytes: ...

    def readline(self) -> bytes: ...

    def tell(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Global:
    """The name of a function or class in a pickle; it is never looked up."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(eq=False)
class Record:
    """An object that a pickle wanted to have made.

    Attributes:
      maker: what it wanted to call, dotted.
      args: with what.
      state: what it wanted to hand to ``__setstate__`` or ``__dict__``, or None.
    """

    maker: str
    args: tuple[Any, ...]
    state: Any = None


def read_pickle(
    stream: Stream,
    *,
    where: str,
    builders: Mapping[str, Callable[..., Any]],
    is_known: Callable[[str, str], bool],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """One pickle of any protocol as plain containers, ``Global`` and ``Record``.

    Args:
      stream: stands at the first byte of the pickle, afterwards behind its last.
      where: the name of the file, for messages.
      builders: dotted name -> our own function that makes the value, where a container
        or a value is wanted instead of a ``Record``.
      is_known: (module, name) -> whether the pickle may hold this name besides these.
      persistent: what a persistent id stands for; None where none may occur.

    Raises:
      UnsafePickleError: it holds another name, or tries to call what is no name.
      ValueError: it is cut off or damaged.
    """
    machine = _Machine(where, builders, is_known, persistent)
    position = 0
    try:
        for opcode, arg, found_at in pickletools.genops(cast(IO[bytes], stream)):
            position = found_at or 0
            machine.step(opcode.name, arg)
        (value,) = machine.stack
    except UnsafePickleError:
        raise
    except (ValueError, *_DAMAGE) as error:
        raise ValueError(
            f"{where}: the pickle is cut off or damaged near its byte {position}: "
            f"{error}"
        ) from error
    return value


def check_key(value: Any) -> Any:
    """The value, if it may be a key of a dict or an element of a set.

    Hashing recurses: a tuple nested a million deep would end the process.

    Raises:
      ValueError: it is neither a plain value nor a tuple of plain values.
    """
    plain = (str, bytes, int, float, type(None), Global)
    parts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, plain) for part in parts):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


class _Machine:
    """The stack, the marks and the memo; one method ``op_*`` per opcode."""

    def __init__(
        self,
        where: str,
        builders: Mapping[str, Callable[..., Any]],
        is_known: Callable[[str, str], bool],
        persistent: Callable[[Any], Any] | None,
    ):
        self.where = where
        self.builders = builders
        self.is_known = is_known
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, arg: Any) -> None:
        if name in _VALUES:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name not in _IGNORED:
            operation = getattr(self, f"op_{name.lower()}", None)
            if operation is None:
                raise self.refusal(f"the opcode {name}")
            operation(arg)

    def refusal(self, what: str) -> UnsafePickleError:
        return UnsafePickleError(
            f"{self.where}: the pickle asks for {what}, which network weights do not "
            "need. It was refused; nothing in the file was executed."
        )

    def find(self, module: str, name: str) -> Global:
        module = _PYTHON2.get(module, module)
        found = Global(f"{module}.{name}")
        if found.name not in self.builders and not self.is_known(module, name):
            raise self.refusal(found.name)
        return found

    def call(self, target: Any, args: Any) -> Any:
        if not isinstance(target, Global):
            raise self.refusal(f"a call of a {type(target).__name__}")
        if not isinstance(args, tuple):
            raise TypeError(f"arguments in a {type(args).__name__}")
        if builder := self.builders.get(target.name):
            return builder(*args)
        return Record(target.name, args)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    # The stack and the memo.

    def op_mark(self, arg: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def op_pop(self, arg: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def op_pop_mark(self, arg: None) -> None:
        self.pop_mark()

    def op_dup(self, arg: None) -> None:
        self.stack.append(self.stack[-1])

    def op_put(self, arg: int) -> None:
        self.memo[arg] = self.stack[-1]

    def op_get(self, arg: int) -> None:
        self.stack.append(self.memo[arg])

    op_binput = op_long_binput = op_put
    op_binget = op_long_binget = op_get

    def op_memoize(self, arg: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # Containers.

    def op_tuple(self, arg: None) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def pack(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError(f"a tuple of {count} from a stack of {len(self.stack)}")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def op_tuple1(self, arg: None) -> None:
        self.pack(1)

    def op_tuple2(self, arg: None) -> None:
        self.pack(2)

    def op_tuple3(self, arg: None) -> None:
        self.pack(3)

    def op_list(self, arg: None) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError(f"append to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def op_append(self, arg: None) -> None:
        self.extend([self.stack.pop()])

    def op_appends(self, arg: None) -> None:
        self.extend(self.pop_mark())

    def update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError(f"entries for a {type(self.stack[-1]).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][check_key(key)] = value

    def op_setitem(self, arg: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def op_setitems(self, arg: None) -> None:
        self.update(self.pop_mark())

    def op_dict(self, arg: None) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.update(items)

    def op_additems(self, arg: None) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise TypeError(f"elements for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(check_key(item) for item in items)

    def op_frozenset(self, arg: None) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(check_key(item) for item in items))

    # Names, and what they would have made.

    def op_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(self.find(module, name))

    def op_stack_global(self, arg: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a name that is not text")
        self.stack.append(self.find(module, name))

    def op_reduce(self, arg: None) -> None:
        args, target = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(target, args))

    op_newobj = op_reduce

    def op_newobj_ex(self, arg: None) -> None:
        keywords, args, target = (self.stack.pop() for _ in range(3))
        if keywords:
            raise TypeError("an object made with keyword arguments")
        self.stack.append(self.call(target, args))

    def op_inst(self, arg: str) -> None:
        items = self.pop_mark()
        module, _, name = arg.partition(" ")
        self.stack.append(self.call(self.find(module, name), tuple(items)))

    def op_obj(self, arg: None) -> None:
        target, *args = self.pop_mark()
        self.stack.append(self.call(target, tuple(args)))

    def op_build(self, arg: None) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):
            # Attributes of a dict (OrderedDict._metadata) are no entries: left out.
            raise TypeError(f"a state for a {type(target).__name__}")

    def op_persid(self, arg: Any) -> None:
        if self.persistent is None:
            raise self.refusal("an object outside the pickle (a persistent id)")
        self.stack.append(self.persistent(arg))

    def op_binpersid(self, arg: None) -> None:
        self.op_persid(self.stack.pop())
