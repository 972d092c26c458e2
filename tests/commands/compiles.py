"""A command that says on stderr what it compiles; see test_describe.py.

python -m tests.commands.compiles COMMAND [--flag=value ...]
"""

import sys

import jax

from scm_jax.commands import main

COMPILED = "/jax/core/compile/backend_compile_duration"


def run(argv):
    """The command; its number of compilations is the last line on stderr."""
    count = 0

    def listen(event, duration, **details):
        nonlocal count
        count += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.config.update("jax_log_compiles", True)
    code = main.main(argv)
    print(f"compilations: {count}", file=sys.stderr)
    return code


if __name__ == "__main__":
    argv = sys.argv[1:]
    sys.exit(run(["describe", *argv] if argv[0].startswith("--") else argv))
