"""Plants the faults of mutations/ one by one; each must turn its test red.

    python tests/run_mutations.py            all of them, in a copy of the tree
    python tests/run_mutations.py --only=sigma   those with "sigma" in the name, or
                                                 those of mutations/sigma.toml
    python tests/run_mutations.py --check    that each still applies and names a test

A fault is ``file``, ``search`` (occurs exactly once), ``replace`` and ``test``. A fault
whose test stays green has found a test that cannot fail.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPIED = (
    *("scm_jax", "tests", "benchmarks", "experiments", "data", "docs"),
    *("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"),
)
RED, GREEN = 1, 0  # pytest: some tests failed; all passed


def load() -> list[dict[str, str]]:
    """The planted faults."""
    files = sorted((ROOT / "tests/mutations").glob("*.toml"))
    return [
        {**fault, "group": file.stem}
        for file in files
        for fault in tomllib.loads(file.read_text())["fault"]
    ]


def problem(fault: dict[str, str]) -> str | None:
    """Why a fault cannot be planted, or None."""
    text = (ROOT / fault["file"]).read_text()
    count = text.count(fault["search"])
    if count != 1:
        return f"its search text occurs {count} times in {fault['file']}"
    if fault["search"] == fault["replace"]:
        return "it changes nothing"
    file, *parts = fault["test"].split("::")
    path = ROOT / file
    if not path.is_file():
        return f"{file} does not exist"
    name = parts[-1].split("[")[0]
    if f"def {name}(" not in path.read_text():
        return f"{file} has no test {name}"
    return None


def copy_tree(target: pathlib.Path) -> None:
    """The parts of the repository that tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            # With bytecode, which Python checks against time and size of the source.
            shutil.copytree(source, target / name)
        else:
            shutil.copy2(source, target / name)


def run_test(tree: pathlib.Path, test: str) -> tuple[int, str]:
    """pytest's exit code and output for one test of a tree."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def try_fault(fault: dict[str, str]) -> tuple[str, str]:
    """``red``, or what happened instead; and pytest's output."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        copy_tree(tree)
        file = tree / fault["file"]
        text = file.read_text()
        file.write_text(text.replace(fault["search"], fault["replace"]))
        code, output = run_test(tree, fault["test"])
    if code == RED:
        return "red", output
    return ("GREEN" if code == GREEN else f"pytest exit {code}"), output


def main() -> int:
    """Exit code 0 when every fault was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    faults = [f for f in load() if args.only in f["name"] or args.only == f["group"]]
    broken = [(f["name"], why) for f in faults if (why := problem(f))]
    for name, why in broken:
        print(f"cannot be planted: {name}: {why}")
    if broken or not faults:
        return 1
    if args.check:
        print(f"{len(faults)} planted faults apply")
        return 0
    missed, started = 0, time.monotonic()
    with (
        concurrent.futures.ThreadPoolExecutor(args.jobs) as pool,
        tempfile.TemporaryDirectory() as compiled,
    ):
        # Most programs are those of another fault's test.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        for fault, (state, output) in zip(
            faults, pool.map(try_fault, faults), strict=True
        ):
            print(f"{state:<6} {fault['name']}  ({fault['test']})", flush=True)
            if state != "red":
                missed += 1
                print("\n".join(output.splitlines()[-15:]))
    minutes = (time.monotonic() - started) / 60
    print(
        f"{len(faults) - missed} of {len(faults)} faults were seen in {minutes:.1f} "
        f"minutes, {args.jobs} at once"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
