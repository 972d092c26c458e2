"""Pickles as data: names become records; nothing is looked up or called."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, ClassVar, NoReturn

# Opcodes that hash values, and where these are on the stack above the last mark.
_HASHING = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(0, None, 2),
    pickle.DICT: slice(0, None, 2),
    pickle.ADDITEMS: slice(None),
    pickle.FROZENSET: slice(None),
}
# What makes an array, in numpy 1 and in numpy 2.
ARRAYS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
# Protocols up to 2 write the module names of Python 2.
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class UnsafePickleError(ValueError):
    """A pickle asks for something that weights do not need. Nothing was executed."""


class Record:
    """An object that a pickle wanted to make; its class stands for a name there."""

    maker: ClassVar[str]  # what the pickle wanted to call, dotted
    build: ClassVar[Callable[..., Any] | None] = None
    args: tuple[Any, ...]  # of that call
    state: Any  # what it wanted to hand to __setstate__ or __dict__, or None

    def __new__(cls, *args: Any) -> Any:
        # Not __init__: the opcode NEWOBJ calls __new__ alone.
        if cls.build is not None:
            return cls.build(*args)
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        # Without this method the unpickler would set attributes, of classes as well.
        self.state = state


class Attributed(dict):
    """A dict whose attributes, such as ``OrderedDict._metadata``, are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


def encode(text: Any, encoding: Any) -> bytes:
    """``_codecs.encode``: how protocol 2, which has no bytes, writes them."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding other than latin1")
    return str.encode(text, "latin1")


def is_name(value: Any) -> bool:
    """Whether the value is a name that a pickle holds and does not call."""
    return isinstance(value, type) and issubclass(value, Record)


def check_keys(keys: Iterable[Any]) -> None:
    """Refuses tuples of tuples as keys of dicts and elements of sets."""
    # Their hash recurses: a million levels overflow the stack, and a tuple that holds
    # itself many times over takes forever.
    for key in keys:
        parts = key if isinstance(key, tuple) else ()
        if any(isinstance(part, tuple) and part for part in parts):
            raise ValueError("a tuple of tuples as a key")


@contextlib.contextmanager
def damage_in(what: str) -> Iterator[None]:
    """Turns what damaged content raises into a ``ValueError`` that begins with what."""
    try:
        yield
    except UnsafePickleError:
        raise
    except Exception as error:  # pickle, zipfile, zlib and numpy raise a dozen kinds
        raise ValueError(f"{what}: {error}") from error


def _checked(opcode: int, keys: slice) -> Callable[[Any], None]:
    load = pickle._Unpickler.dispatch[opcode]

    def checked(unpickler: Any) -> None:
        check_keys(unpickler.stack[keys])
        load(unpickler)

    return checked


# The unpickler in Python: the one in C allocates as much memory as an index of its memo
# asks for, and does not let its opcodes be checked.
class _Unpickler(pickle._Unpickler):
    def __init__(
        self,
        stream: IO[bytes],
        where: str,
        builders: Mapping[str, Callable[..., Any]],
        is_known: Callable[[str, str], bool],
        persistent: Callable[[Any], Any] | None,
    ):
        super().__init__(stream, encoding="latin1")
        self._where, self._builders, self._is_known = where, builders, is_known
        self._persistent = persistent
        self._names: dict[str, type[Record]] = {}

    read: Callable[[int], bytes]

    def _refuse(self, what: str) -> NoReturn:
        if not self.read(1):  # cut off within a name, as STOP would follow
            raise EOFError("it ends within a name")
        raise UnsafePickleError(
            f"{self._where}: the pickle asks for {what}, which network weights do not "
            "need. It was refused; nothing in the file was executed."
        )

    def find_class(self, module: str, name: str) -> type[Record]:
        module = _PYTHON2.get(module, module)
        dotted = f"{module}.{name}"
        if dotted not in self._builders and not self._is_known(module, name):
            self._refuse(dotted)
        if dotted not in self._names:
            build = self._builders.get(dotted)
            members = {"maker": dotted, "build": build and staticmethod(build)}
            self._names[dotted] = type("Record", (Record,), members)
        return self._names[dotted]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            self._refuse("an object outside the pickle (a persistent id)")
        return self._persistent(pid)

    def get_extension(self, code: int) -> NoReturn:
        self._refuse(f"the extension {code} of this process")  # past find_class

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{opcode[0]: _checked(opcode[0], keys) for opcode, keys in _HASHING.items()},
    }


def read_pickle(
    stream: IO[bytes],
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
    with damage_in(f"{where}: the pickle is cut off or damaged"):
        return _Unpickler(stream, where, builders, is_known, persistent).load()
