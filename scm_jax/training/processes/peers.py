"""One TCP connection from process 0 to each other: who is there, and who has died.

A message is a JSON object on a line. Threads read; when the run cannot go on, the
process prints why and ends at once, whatever the main thread waits for.
"""

# JAX ends a process whose peers are dead with a stack trace that names no address, and
# a process that fails in Python leaves the others waiting in a collective. So the lines
# stand from before ``jax.distributed.initialize`` to the end of the run.
from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from scm_jax.training.processes.cluster import Cluster

BEAT_SECONDS = 3.0
SILENCE_SECONDS = 40.0  # longer than a busy Python pauses; a host without power is mute
_MARGIN = 5.0  # the others wait longer than process 0, which knows who is missing
_THE_END = "the end of the run"

RESUME = (
    "Checkpoints that were complete are kept: once the cause is gone, start all "
    "processes with the same command to resume."
)


class PeerError(RuntimeError):
    """The processes did not come together; the message says who and why."""


def end_process() -> None:
    """Leaves at once, from any thread, with exit code 1."""
    sys.stdout.flush()
    # Not sys.exit: other threads, and JAX's own exit handlers, wait for the peers.
    os._exit(1)


class Peers:
    """All processes of a run, seen from one of them; made by ``Peers.join``."""

    def __init__(self, cluster: Cluster, end: Callable[[], None]):
        self.cluster = cluster
        self._end_process = end
        self._names = {i: f"process {i}" for i in range(cluster.num_processes)}
        self._names[cluster.process_id] += f" ({socket.gethostname()})"
        self._lines: dict[int, _Line] = {}
        self._changed = threading.Condition()
        self._ended = False  # from now on the end of another process is no news
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._given: dict[str, dict[int, Any]] = {}
        self._results: dict[str, list[Any]] = {}

    @classmethod
    def join(
        cls, cluster: Cluster, timeout: float, end: Callable[[], None] = end_process
    ) -> Peers:
        """Waits up to ``timeout`` seconds until all processes are connected.

        ``end`` is called from another thread when the run cannot go on, after the
        reason was printed.

        Raises:
          PeerError: the coordinator cannot be reached, or processes are missing; within
            ``timeout`` and a few seconds, on every process that is there.
        """
        peers = cls(cluster, end)
        join = peers._connect if cluster.process_id else peers._listen
        join(time.monotonic() + timeout, timeout)
        for pair in peers._lines.items():
            threading.Thread(target=peers._read, args=pair, daemon=True).start()
        threading.Thread(target=peers._beat, daemon=True).start()
        return peers

    def _listen(self, deadline: float, timeout: float) -> None:
        port = self.cluster.address[1]
        try:
            server = _server(port)
        except OSError as error:
            raise PeerError(
                f"process 0 cannot listen on port {port} of {socket.gethostname()} "
                f"({error.strerror}): another run may hold it; choose another port"
            ) from error
        with server:
            while len(self._lines) < self.cluster.num_processes - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    line = _Line(server.accept()[0])
                except TimeoutError:
                    self._refuse(
                        f"{self._missing(self._lines)} did not connect to process 0 at "
                        f"{self.cluster.coordinator} within {timeout:g} s: look at "
                        "their output, and whether all were started with this address"
                    )
                self._greet(line, deadline)
        for line in self._lines.values():
            line.send({"names": list(self._names.values())})

    def _greet(self, line: _Line, deadline: float) -> None:
        try:
            hello = line.receive(min(5.0, max(0.1, deadline - time.monotonic())))
            index, number = int(hello["process"]), int(hello["processes"])
        except (OSError, ValueError, KeyError, TypeError):
            line.close()  # a port scan, or a process that was killed just now
            return
        name = f"process {index} ({hello.get('host')})"
        problem = None
        if number != self.cluster.num_processes:
            problem = (
                f"{name} was told that there are {number} processes, process 0 that "
                f"there are {self.cluster.num_processes}"
            )
        elif index in self._lines or not 0 < index < number:
            problem = (
                f"two processes have the index {index}: {self._names[index]} and one "
                f"on {hello.get('host')}"
            )
        if problem:
            self._refuse(problem, line)
        self._lines[index], self._names[index] = line, name

    def _refuse(self, problem: str, *more: _Line) -> None:
        _send_last([*self._lines.values(), *more], problem)
        raise PeerError(problem)

    def _missing(self, present: Iterable[int]) -> str:
        here = {self.cluster.process_id, *present}
        missing = [str(i) for i in range(self.cluster.num_processes) if i not in here]
        return f"process{'es' * (len(missing) > 1)} {', '.join(missing)}"

    def _connect(self, deadline: float, timeout: float) -> None:
        me, host = self.cluster, socket.gethostname()
        hello = {"process": me.process_id, "processes": me.num_processes, "host": host}
        where = f"process {me.process_id} of {me.num_processes}"
        problem: Any = "no answer"
        while time.monotonic() < deadline:
            left, line = max(0.1, deadline - time.monotonic()), None
            try:
                line = _Line(socket.create_connection(me.address, min(10.0, left)))
                line.send(hello)
                answer = line.receive(max(0.1, deadline - time.monotonic()) + _MARGIN)
            except (OSError, ValueError) as error:
                if line is not None and isinstance(error, TimeoutError):
                    raise PeerError(
                        f"{where} reached process 0 at {me.coordinator}, but not all "
                        f"others did within {timeout:g} s: were all started together?"
                    ) from None
                problem = getattr(error, "strerror", None) or error
                if line is not None:
                    line.close()
                time.sleep(0.3)
                continue
            if "stop" in answer:
                raise PeerError(f"{where}: {answer['stop']}")
            self._names = dict(enumerate(answer["names"]))
            self._lines[0] = line
            return
        raise PeerError(
            f"{where} on {host} could not reach the coordinator at "
            f"{me.coordinator} (from {me.source}) within {timeout:g} s: {problem}. Is "
            "process 0 running there, and is the port open between the hosts?"
        )

    def exchange(self, what: str, value: Any, timeout: float | None) -> list[Any]:
        """Every process gives a JSON value and gets the list of all, by process.

        ``what`` is a name that is used once. After ``timeout`` seconds (None: as long
        as all are alive) all end with a message that names who did not come.
        """
        is_first = self.cluster.process_id == 0
        if is_first:
            self._put(what, 0, value)
        else:
            self._lines[0].send({"put": what, "value": value})
        with self._changed:
            done = self._changed.wait_for(
                lambda: what in self._results or self._stopping.is_set(),
                None if timeout is None else timeout + _MARGIN * (not is_first),
            )
        if not done:
            here = self._given.get(what, {})
            who = self._missing(here) if is_first else "some process"
            self._stop_all(f"{who} did not come to {what!r} within {timeout:g} s")
        if what not in self._results:  # the process is about to end
            raise PeerError(f"stopped while waiting for {what!r}")
        return self._results[what]

    @contextlib.contextmanager
    def time_limit(self, what: str, seconds: float) -> Iterator[None]:
        """Ends all processes with a message if the body takes longer."""
        text = f"{self.name} needed more than {seconds:g} s for {what}"
        timer = threading.Timer(seconds, self._stop_all, [text])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @property
    def name(self) -> str:
        """This process in messages: its index and host."""
        return self._names[self.cluster.process_id]

    def names(self) -> list[str]:
        """All processes in messages."""
        return [self._names[i] for i in range(self.cluster.num_processes)]

    def report(self, text: str) -> None:
        """Tells all others that this process stops, and why; they end."""
        self.leave()
        _send_last(self._lines.values(), text)

    def leave(self) -> None:
        """From now on the others' end is no news: they stop for the same reason."""
        with self._changed:
            self._ended = True

    def verdict(self, seconds: float) -> bool:
        """Whether another process has ended the run; waits up to ``seconds`` for it.

        True only after the reason was printed and passed on.
        """
        wait = 0.0 if self._ended else seconds
        return self._stopping.wait(wait) and self._stopped.wait()

    def close(self) -> None:
        """Waits until all have come here; then nobody's end is a loss any more."""
        self.exchange(_THE_END, None, timeout=None)

    def _beat(self) -> None:
        while True:
            for line in self._lines.values():
                line.send({})
            time.sleep(BEAT_SECONDS)

    def _read(self, index: int, line: _Line) -> None:
        while True:
            try:
                message = line.receive(SILENCE_SECONDS)
            except TimeoutError:
                return self._lost(index, f"sent nothing for {SILENCE_SECONDS:g} s")
            except (OSError, ValueError):
                return self._lost(index, "died: its connection closed")
            if "stop" in message:
                return self._stop_all(message["stop"], but=index)
            if "put" in message:
                self._put(message["put"], index, message["value"])
            if "all" in message:
                self._finish(message["all"], message["values"])

    def _put(self, what: str, index: int, value: Any) -> None:
        # On process 0: one more value; with the last one all are sent round.
        with self._changed:
            given = self._given.setdefault(what, {})
            given[index] = value
            if len(given) < self.cluster.num_processes:
                return
            self._ended |= what == _THE_END  # from here on the others may hang up
        values = [given[i] for i in sorted(given)]
        for line in self._lines.values():
            line.send({"all": what, "values": values})
        self._finish(what, values)  # last: this process may end then

    def _finish(self, what: str, values: list[Any]) -> None:
        with self._changed:
            self._ended |= what == _THE_END
            self._results[what] = values
            self._changed.notify_all()

    def _lost(self, index: int, how: str) -> None:
        self._stop_all(f"{self._names[index]} {how}. {RESUME}", but=index)

    def _stop_all(self, text: str, but: int | None = None) -> None:
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._stopping.set()
            self._changed.notify_all()
        # First of all: JAX may notice as well, and end the process in its own way.
        print(f"scm: {self.name} stops: {text}", file=sys.stderr, flush=True)
        others = [line for i, line in self._lines.items() if i != but]
        _send_last(others, text)
        self._stopped.set()
        self._end_process()


class _Line:
    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._reader: TextIO = connection.makefile("r", encoding="utf-8")
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends; where the connection is gone, its reader notices."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall((json.dumps(message) + "\n").encode())

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next message; OSError or ValueError where there is none."""
        self._socket.settimeout(timeout)
        line = self._reader.readline()
        if not line.endswith("\n"):
            raise ConnectionError("closed")
        return json.loads(line)

    def finish_sending(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


def _send_last(lines: Iterable[_Line], text: str) -> None:
    """Tells why this process stops, and leaves time to read it."""
    for line in lines:
        line.send({"stop": text})
        line.finish_sending()
    time.sleep(0.5)  # a socket that is closed early may lose its last message


def _server(port: int) -> socket.socket:
    both: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    try:
        return socket.create_server(("", port), backlog=1024, **both)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise
    return socket.create_server(("", port), backlog=1024)  # a host without IPv6
