"""A command that says on stderr what it compiles; see test_describe.py.

python -m tests.commands.compiles COMMAND [--flag=value ...]
"""

import sys

import jax

from scm_jax import main

if __name__ == "__main__":
    jax.config.update("jax_log_compiles", True)
    argv = sys.argv[1:]
    if argv[0].startswith("--"):
        argv = ["describe", *argv]
    sys.exit(main.main(argv))
