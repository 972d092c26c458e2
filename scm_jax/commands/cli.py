"""Commands by name: their registry, their flags, and how one of them is run."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from absl import flags

from scm_jax.files import shipped, user_paths
from scm_jax.files.user_paths import real_number, whole_number
from scm_jax.types import lookup

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from scm_jax.training.processes.peers import Peers

_EXPECTED = (
    ("scm_jax.training.loop", "NonFiniteError"),
    ("scm_jax.training.seal", "CheckpointError"),
    ("scm_jax.files.optional", "MissingPackageError"),
    ("scm_jax.runs.directory.locks", "HeldError"),
    ("scm_jax.training.processes.peers", "PeerError"),
)

# Name, of one word or two, -> function and summary.
_COMMANDS: dict[str, tuple[Callable[[], int], str]] = {}


def command(name: str, summary: str) -> Callable[[Callable], Callable]:
    """Registers a command: a function that reads its flags and returns an exit code."""

    def register(fn: Callable) -> Callable:
        _COMMANDS[name] = (fn, summary)
        return fn

    return register


class UsageError(Exception):
    """The command line is wrong; the message says why."""


# Flags declared through functions of this module belong to their callers.
flags.disclaim_key_flags()


class _WholeNumbers(flags.IntegerParser):
    def convert(self, argument: int | str) -> int:
        return whole_number(argument) if isinstance(argument, str) else int(argument)


class _RealNumbers(flags.FloatParser):
    def convert(self, argument: float | str) -> float:
        return real_number(argument) if isinstance(argument, str) else float(argument)


class _Paths(flags.ArgumentParser):
    # A shell leaves the ``~`` of ``--flag=~/x`` as it is.
    def parse(self, argument: str) -> str:
        return str(user_paths.expand(argument)) if argument else argument


def path(name: str, default: str | None, text: str) -> None:
    """Declares a flag that takes a path."""
    flags.DEFINE(_Paths(), name, default, text, serializer=flags.ArgumentSerializer())


class _Directories(flags.ListParser):
    # Names may have commas: takes the longest pieces that are directories.
    def parse(self, argument: str | list[str]) -> list[str]:
        pieces = super().parse(argument) if argument else []
        found = []
        while pieces:
            lengths = range(len(pieces), 1, -1)
            fits = (n for n in lengths if os.path.isdir(",".join(pieces[:n])))
            length = next(fits, 1)
            found.append(",".join(pieces[:length]))
            pieces = pieces[length:]
        return found


def directories(name: str, default: list[str] | None, text: str) -> None:
    """Declares a flag that takes a list of directories."""
    serializer = flags.CsvListSerializer(",")
    flags.DEFINE(_Directories(), name, default, text, serializer=serializer)


def integer(
    name: str,
    default: int | None,
    text: str,
    lower_bound: int | None = None,
    upper_bound: int | None = None,
) -> None:
    """Declares a flag that takes whole numbers."""
    parser = _WholeNumbers(lower_bound, upper_bound)
    flags.DEFINE(parser, name, default, text, serializer=flags.ArgumentSerializer())


def config_file(name: str, text: str) -> None:
    """Declares a flag that takes an experiment file, and its overrides."""
    from ml_collections import config_flags

    config_flags.register_flag_parser_for_type(int, _WholeNumbers())
    config_flags.register_flag_parser_for_type(float, _RealNumbers())
    config_flags.DEFINE_config_file(name, None, text, sys_argv=["scm", *_ARGV])


def process_flags() -> None:
    """Declares the flags of commands that several processes can run as one."""
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "off"],
        "Whether to join the processes that flags, SLURM, TPU or Kubernetes name.",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens.")
    integer("num_processes", None, "Number of processes that train together.", 1)
    integer("process_id", None, "Index of this process, from 0.", 0)
    flags.DEFINE_float("join_timeout", 45.0, "Seconds to wait for all processes.")


def processes(config: ConfigDict) -> AbstractContextManager[Peers | None]:
    """The other processes of this training, as a context."""
    from scm_jax import config as config_lib
    from scm_jax.runs.directory import layout
    from scm_jax.training.processes import cluster, multihost

    f = flags.FLAGS
    names = ("distributed", "coordinator", "num_processes", "process_id")
    asked: Any = {name: f[name].value for name in names}
    found = cluster.find_cluster(os.environ, **asked)
    identity = {} if found is None else layout.identity(config_lib.to_dict(config))
    return multihost.joined(found, identity, explain, timeout=f.join_timeout)


def required(*names: str) -> None:
    """Raises UsageError where a flag has no value."""
    missing = [name for name in names if not getattr(flags.FLAGS, name)]
    if missing:
        raise UsageError("missing " + ", ".join(f"--{name}=..." for name in missing))


def parse(*needed: str) -> flags.FlagValues:
    """Reads and returns the command's flags; ``--help`` prints them and exits."""
    name, rest = _split(_ARGV)
    if any(a in ("--help", "-h", "-help") for a in rest):
        print(_COMMANDS[name][1] + "\n")
        print(_flag_help())
        raise SystemExit(0)
    try:
        left = flags.FLAGS(["scm " + name, *map(_shipped_config, rest)])
    except (KeyError, AttributeError) as error:  # of an override's key
        raise UsageError(_unknown_key(rest)) from error
    except flags.Error as error:
        text = str(error)
        if "Traceback" in text:  # of an experiment file: its last line says it all
            text = text.strip().splitlines()[-1]
        raise UsageError(text) from error
    if len(left) > 1:
        raise UsageError(
            f"unexpected argument {left[1]!r}; flags look like --name=value"
        )
    required(*needed)
    return flags.FLAGS


def _unknown_key(args: Sequence[str]) -> str:
    """Says which override of ``--config`` names no key, and which keys there are."""
    from ml_collections.config_flags import config_flags

    from scm_jax.runs.setup import config_values

    names = [arg.lstrip("-").partition("=") for arg in args]
    file = next(value for name, _, value in names if name == "config")
    config = config_flags.ConfigFileFlagParser("config").parse(file)
    for name, _, _ in names:
        section, _, key = name.partition(".")
        if section in ("config", "noconfig") and key:
            try:
                config_values.parent(config, key)
            except ValueError as error:
                return f"--{name}: {error}"
    return f"one of the overrides of {file} cannot be set"


def _shipped_config(arg: str) -> str:
    """``--config=FILE:ARG`` with the shipped file where there is no such file here."""
    flag, _, value = arg.partition("=")
    file, colon, rest = value.partition(":")
    if flag.lstrip("-") != "config" or not file:
        return arg
    return f"{flag}={shipped.find(file)}{colon}{rest}"


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
    # A command of a group such as ``data`` has a name of two words.
    words = 2 if _group(argv[0]) and len(argv) > 1 else 1
    return " ".join(argv[:words]), list(argv[words:])


def _group(word: str) -> list[str]:
    """The commands of two words that begin with ``word``."""
    return [name for name in _COMMANDS if name.startswith(f"{word} ")]


def _flag_help() -> str:
    own = {flags.FLAGS["config"]} if "config" in flags.FLAGS else set()
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("scm_jax."):
            own |= {*defined}
    lines = []
    for flag in sorted(own, key=lambda flag: flag.name):
        if flag.help:
            default = (
                "" if flag.default in (None, "", False, []) else f" [{flag.default}]"
            )
            lines.append(f"  --{flag.name}  {flag.help}{default}")
    return "\n".join(lines)


_ARGV: list[str] = []


def _usage(names: Sequence[str]) -> str:
    width = max(len(name) for name in names) + 2
    lines = [f"  {name:<{width}}{_COMMANDS[name][1]}" for name in names]
    return (
        "scm COMMAND [--flag=value ...]; COMMAND --help lists its flags\n"
        + "\n".join(lines)
    )


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    global _ARGV
    _ARGV = list(sys.argv[1:] if argv is None else argv)
    help_words = ("--help", "-h", "help")
    if not _ARGV or _ARGV[0] in help_words:
        print(_usage(sorted(_COMMANDS, key=lambda name: " " in name)))
        return 0 if _ARGV else 2
    group = _group(_ARGV[0])
    if group and (len(_ARGV) == 1 or _ARGV[1] in help_words):
        print(_usage(group))
        return 0 if len(_ARGV) > 1 else 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    name, _ = _split(_ARGV)
    try:
        command, _ = lookup(_COMMANDS, name, "command")
        return command()
    except UsageError as error:
        print(f"scm {name}: {error}", file=sys.stderr)
        return 2
    except _expected_errors() as error:
        print(explain(error), file=sys.stderr)
        return 1


def explain(error: BaseException) -> str:
    """The text to print: the message alone where the user can mend it."""
    if isinstance(error, _expected_errors()):
        return f"scm {_split(_ARGV)[0]}: {_sentence(error)}"
    return "".join(traceback.format_exception(error))


def _sentence(error: BaseException) -> str:
    # The operating system's errors name the file apart from the reason.
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    files = [str(f) for f in (error.filename, error.filename2) if f is not None]
    reason = error.strerror
    return f"cannot use {' and '.join(files)}: {reason}" if files else reason


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a user can cause and mend: shown as a message, without a traceback."""
    errors: list[type[Exception]] = [ValueError, OSError, AttributeError]
    for module, name in _EXPECTED:  # what is not imported has not raised
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)
