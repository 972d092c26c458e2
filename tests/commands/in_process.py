"""Commands in the process of the test, where their compilations are shared."""

import contextlib
import io
from typing import NamedTuple

from absl import flags

from scm_jax.commands import cli, data, main, process_flags, sweep


class Said(NamedTuple):
    stdout: str
    stderr: str


def scm(*args, check=0):
    """Runs ``scm ARGS``; asserts its exit code; returns what it said.

    absl keeps flags for good, but a command's are its own.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run([str(arg) for arg in args])
    finally:
        by_module = flags.FLAGS.flags_by_module_dict()
        for module in (data, main, process_flags, sweep):
            for flag in list(by_module.get(module.__name__, [])):
                delattr(flags.FLAGS, flag.name)
    assert code == check, out.getvalue() + err.getvalue()
    return Said(out.getvalue(), err.getvalue())
