"""Compiled programs are kept, in a folder of the user, unless told otherwise."""

import os
import pathlib
import subprocess
import sys

import pytest

from scm_jax.commands import compile_cache
from tests.commands.in_process import scm

ROOT = pathlib.Path(__file__).parents[1]
COMPILE = """
from scm_jax.commands import compile_cache
compile_cache.MIN_COMPILE_SECONDS = 0
print(compile_cache.enable())
import jax
print(jax.jit(lambda x: x + 41)(1))
"""
HITS = """
from jax import monitoring
seen = []
monitoring.register_event_listener(lambda name, **kw: seen.append(name))
jax.clear_caches()
jax.jit(lambda x: x + 41)(1)
print("/jax/compilation_cache/cache_hits" in seen)
"""


def run(code, home, **environment):
    """The code in a fresh process whose user has the folder ``home`` for caches."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home)}
    env.pop("JAX_ENABLE_COMPILATION_CACHE", None)
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    how = {"cwd": ROOT, "env": {**env, **environment}, "capture_output": True}
    done = subprocess.run([sys.executable, "-c", code], **how, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_programs_are_kept_in_the_users_folder_and_found_again(tmp_path):
    folder, result = run(COMPILE, tmp_path).stdout.split()
    assert pathlib.Path(folder).parent == tmp_path / "scm_jax" / "xla"
    assert result == "42" and list(pathlib.Path(folder).rglob("*-cache"))
    assert run(COMPILE + HITS, tmp_path).stdout.split()[-1] == "True"


def test_the_users_own_folder_is_taken(tmp_path):
    mine = tmp_path / "mine"
    done = run(COMPILE, tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(mine))
    assert done.stdout.split()[0] == str(mine)
    assert not (tmp_path / "home").exists()


def test_the_users_switch_turns_it_off(tmp_path):
    done = run(COMPILE, tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert done.stdout.split() == ["None", "42"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    home = tmp_path / "file"
    home.write_text("in the way")
    done = run(COMPILE, home)
    assert done.stdout.split() == ["None", "42"]
    assert "compiled programs are not kept" in done.stderr


def test_importing_the_package_turns_nothing_on(tmp_path):
    code = "import scm_jax.runs.train, scm_jax.commands.main, jax; print(repr(KEY))"
    key = "jax.config.jax_compilation_cache_dir"
    assert run(code.replace("KEY", key), tmp_path).stdout.strip() == "None"


@pytest.mark.filterwarnings("ignore:the load_module.*:DeprecationWarning")
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config=experiments/mixture.py:sct,quick", "--workdir=x"],
        ["sample", "--run=x"],
        ["evaluate", "--run=x"],
        ["demo", "--workdir=x"],
    ],
)
def test_commands_that_compile_turn_it_on(arguments, monkeypatch):
    monkeypatch.setattr(compile_cache, "enable", lambda: sys.exit("on"))
    with pytest.raises(SystemExit, match="on"):
        scm(*arguments)
