"""Commands in the process of the test, where their compilations are shared."""

import contextlib
import io
from typing import NamedTuple

import jax
from absl import flags

from scm_jax.commands import cli, data, main, sweep


class Said(NamedTuple):
    stdout: str
    stderr: str


@contextlib.contextmanager
def jax_options(**options):
    before = {name: jax.config.values[name] for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


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
        own = [
            f.name for m in (data, main, sweep) for f in by_module.get(m.__name__, [])
        ]
        overrides = [name for name in flags.FLAGS if name.startswith("config.")]
        for name in own + overrides:
            delattr(flags.FLAGS, name)
    assert code == check, out.getvalue() + err.getvalue()
    return Said(out.getvalue(), err.getvalue())
