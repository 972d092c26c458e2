"""Real processes that work together."""

import os
import pathlib
import socket
import subprocess
import sys
import time

from tests.hang import HANG

ROOT = pathlib.Path(__file__).parents[2]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Processes:
    """``python -m`` with each of some lists of arguments; killed at the end."""

    def __init__(self, arguments, **environment):
        self.running = [
            subprocess.Popen(
                [sys.executable, "-m", *map(str, rest)],
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rest in arguments
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for process in self.running:
            process.kill()  # one that hangs in a collective ignores SIGTERM
            process.wait()
            process.stdout.close()

    def finish(self, *codes):
        """Their outputs, when they have ended with these exit codes."""
        outputs = [p.communicate(timeout=HANG)[0] for p in self.running]
        found = [p.returncode for p in self.running]
        assert found == list(codes), "\n".join(outputs)
        return outputs

    def wait_for(self, condition):
        deadline = time.monotonic() + HANG
        while not condition():
            alive = all(p.poll() is None for p in self.running)
            assert alive and time.monotonic() < deadline, self.finish()
            time.sleep(0.1)
