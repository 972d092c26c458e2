"""A worker without a training: ``python stub_worker.py RUN_DIR``.

What it does stands in the file ``behaviour`` of the directory; one word per attempt, of
which the last counts for all further ones: done, fail, final, die, mute or sleep.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from scm_jax.runs.directory import locks  # noqa: E402


def main(run_dir):
    words = (run_dir / "behaviour").read_text().split()
    try:
        with locks.hold(run_dir):
            # Asked with the lock: another worker may have ended it just now.
            if (run_dir / "summary.json").exists():
                return 0
            return attempt(run_dir, words)
    except locks.HeldError as error:
        print(error)
        return 0


def attempt(run_dir, words):
    before = locks.read_status(run_dir)
    number = before.get("attempt", 0) + 1
    if before.get("state") == "running":
        append(run_dir, attempt=before["attempt"], event="ended", outcome="lost")
    word = words[min(number, len(words)) - 1]
    print(f"attempt {number}: {word}", os.sched_getaffinity(0), flush=True)
    if word == "mute":
        return 1
    write(run_dir, number, "running")
    append(run_dir, attempt=number, event="started")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "sleep":
        return sleep(run_dir, number)
    time.sleep(0.1)
    return end(run_dir, number, word)


def sleep(run_dir, number):
    asked = []
    signal.signal(signal.SIGTERM, lambda *args: asked.append(args))
    (run_dir / "asleep").touch()
    while not asked:
        time.sleep(0.02)
    return end(run_dir, number, "preempted")


def end(run_dir, number, word):
    if word == "done":
        (run_dir / "summary.json").write_text("{}")
    state = "failed" if word in ("fail", "final") else word
    write(run_dir, number, state, error=f"{word}!", retry=word != "final")
    append(run_dir, attempt=number, event="ended", outcome=state)
    return {"done": 0, "preempted": 75}.get(state, 1)


def write(run_dir, number, state, **fields):
    status = {"state": state, "attempt": number, "started": time.time()}
    status |= {"heartbeat": time.time(), "heartbeat_seconds": 10.0, **fields}
    unfinished = run_dir / ".status"
    unfinished.write_text(json.dumps({**status, **locks.identity()}))
    unfinished.rename(run_dir / "status.json")


def append(run_dir, **row):
    with (run_dir / "attempts.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "pid": os.getpid(), **row}) + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
