"""Finding the cluster, and the line between processes; see multidevice/test_hosts.py
for real trainings."""

import os
import socket
import threading
import time

import pytest

from scm_jax.commands import cli
from scm_jax.training import checkpoint
from scm_jax.training.processes import multihost
from scm_jax.training.processes import peers as peers_lib
from scm_jax.training.processes.cluster import Cluster, expand_hosts, find_cluster
from scm_jax.training.processes.peers import PeerError, Peers
from tests.multidevice.processes import free_port

CUDA = "CUDA_VISIBLE_DEVICES"
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-08],other",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
JOBSET = {
    "JOB_COMPLETION_INDEX": "3",
    "JOBSET_NAME": "sweep",
    "HOSTNAME": "sweep-workers-0-3",
    "JAX_NUM_PROCESSES": "4",
}
TPU = {"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3", "TPU_WORKER_ID": "2"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "s0:8080",
}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "a.example:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


# --- Finding the cluster -----------------------------------------------------------


@pytest.mark.parametrize(
    "environ, expected",
    [
        (VARIABLES, Cluster("a.example:1234", 2, 1, "JAX variables")),
        (SLURM, Cluster("gpu07:62344", 8, 4, "SLURM")),
        ({**SLURM, CUDA: "0,1,2"}, Cluster("gpu07:62344", 8, 4, "SLURM", (1,))),
        # --gpus-per-task: each task sees its own only
        ({**SLURM, CUDA: "1"}, Cluster("gpu07:62344", 8, 4, "SLURM")),
        ({**SLURM, "SLURM_STEP_ID": "2"}, Cluster("gpu07:62538", 8, 4, "SLURM")),
        (TPU, Cluster("t0:8482", 4, 2, "TPU")),
        ({**TPU, **SLICES}, Cluster("s0:8482", 8, 6, "TPU")),
        # a TPU slice in a JobSet: TPU first
        ({**JOBSET, **TPU}, Cluster("t0:8482", 4, 2, "TPU")),
        (JOBSET, Cluster("sweep-workers-0-0.sweep:8482", 4, 3, "Kubernetes")),
        (
            {**JOBSET, "JAX_COORDINATOR_ADDRESS": "first:99", "HOSTNAME": "node"},
            Cluster("first:99", 4, 3, "Kubernetes"),
        ),
        ({**SLURM, **VARIABLES}, Cluster("a.example:1234", 2, 1, "JAX variables")),
    ],
)
def test_a_cluster_is_found(environ, expected):
    assert find_cluster(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"JAX_COORDINATOR_ADDRESS": "a:1"},
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        # the script of sbatch, or a shell of salloc: a job of 8 tasks, but no step
        {"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"JOB_COMPLETION_INDEX": "3", "HOSTNAME": "runs-3"},
        {**JOBSET, "JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_a_process_that_is_alone(environ):
    assert find_cluster(environ) is None


def test_flags_come_before_the_environment():
    flags = {"coordinator": "[::1]:55", "num_processes": 3, "process_id": 2}
    found = find_cluster({**SLURM, **VARIABLES}, **flags)
    assert found == Cluster("[::1]:55", 3, 2, "flags")
    assert found.address == ("::1", 55)
    assert find_cluster(SLURM, coordinator="a:1", num_processes=1, process_id=0) is None
    assert find_cluster(SLURM, distributed="off") is None
    with pytest.raises(ValueError, match="--distributed=off contradicts"):
        find_cluster({}, distributed="off", process_id=1)


@pytest.mark.parametrize(
    "environ, flags, message",
    [
        ({}, {"coordinator": "a:1"}, "--coordinator without --num_processes, --proces"),
        ({}, {"process_id": 0}, "--process_id without --coordinator, --num_processes"),
        ({**VARIABLES, "JAX_PROCESS_ID": "2"}, {}, "JAX_PROCESS_ID=2: must be in 0..1"),
        ({**VARIABLES, "JAX_PROCESS_ID": "x"}, {}, "JAX_PROCESS_ID='x': must be an i"),
        ({"JAX_NUM_PROCESSES": "2"}, {}, "without JAX_COORDINATOR_ADDRESS, JAX_PROC"),
        ({**VARIABLES, "JAX_COORDINATOR_ADDRESS": "h"}, {}, "='h': must be host:port"),
        ({**SLURM, "SLURM_PROCID": "8"}, {}, "SLURM_PROCID=8: must be in 0..7"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3x2"}, {}, "TASKS_PER_NODE='3x2'"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, "without TPU_WORKER_ID"),
        ({**TPU, "TPU_WORKER_ID": "4"}, {}, "TPU_WORKER_ID=4"),
        ({**JOBSET, "HOSTNAME": "node-17"}, {}, "set JAX_COORDINATOR_ADDRESS"),
        ({**JOBSET, "JAX_NUM_PROCESSES": "3"}, {}, "COMPLETION_INDEX=3: must be in"),
    ],
)
def test_contradictions_name_the_flag_or_variable(environ, flags, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        find_cluster(environ, **flags)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a", ["a"]),
        ("a,b-1", ["a", "b-1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[009-010,3],m", ["n009", "n010", "n3", "m"]),
        ("r[1-2]n[1-2].x", ["r1n1.x", "r1n2.x", "r2n1.x", "r2n2.x"]),
    ],
)
def test_hosts_of_slurm(text, expected):
    assert expand_hosts(text) == expected


# --- The line ----------------------------------------------------------------------


class End(threading.Event):
    """Stands in for the end of the process."""

    def __call__(self):
        self.set()


def together(who, call, timeout=10.0, told=None):
    """``call(peers, end)`` in a thread per process; results or errors, in their order.

    ``who``: how many processes there are, or the indices of those that come.
    """
    who = range(who) if isinstance(who, int) else who
    address, results = f"127.0.0.1:{free_port()}", {}

    def run(place, i):
        end, count = End(), (told or {}).get(i, max(who) + 1)
        try:
            peers = Peers.join(Cluster(address, count, i, "x"), timeout, end)
            results[place] = call(peers, end)
        except (PeerError, ValueError) as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(who)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[place] for place in range(len(who))]


def wait(peers, end):
    return end.wait(20)


def fall_silent(peers):
    """What the others see of a process that has died."""
    peers.leave()
    for line in peers._lines.values():
        line.finish_sending()


def test_everybody_gets_all_values_in_the_same_order():
    def call(peers, end):
        index = peers.cluster.process_id
        first = peers.exchange("a", {"index": index}, 10)
        return first, peers.exchange("b", index * 10, 10), peers.close(), end.is_set()

    expected = [{"index": i} for i in range(3)], [0, 10, 20], None, False
    assert together(3, call) == [expected] * 3


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_coordinator_that_is_not_there(host):
    cluster = Cluster(f"{host}:{free_port()}", 2, 1, "flags")
    with pytest.raises(PeerError, match=f"{host}:.* .from flags. within 0.5 s"):
        Peers.join(cluster, 0.5)


def test_a_process_that_never_comes_is_named_by_all_others():
    first, third = together((0, 3), wait, timeout=2.0)
    assert str(third) == f"process 3 of 4: {first}"
    assert "processes 1, 2 did not connect to process 0 at 127.0.0.1" in str(first)


def test_a_process_that_waits_for_the_others_in_vain(monkeypatch):
    monkeypatch.setattr(peers_lib, "_MARGIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PeerError, match=f"reached process 0 at {address}, but not"):
            Peers.join(Cluster(address, 3, 1, "x"), 0.5)


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PeerError, match=f"cannot listen on port {port}"):
            Peers.join(Cluster(f"127.0.0.1:{port}", 2, 0, "x"), 1.0)


def test_processes_that_were_told_other_numbers():
    for error in together(2, wait, told={1: 3}):
        assert "there are 3 processes, process 0 that there are 2" in str(error)


def test_two_processes_with_one_index():
    for error in together((0, 1, 1), wait, timeout=5.0, told={0: 3, 1: 3}):
        assert "two processes have the index 1" in str(error)


def test_strangers_on_the_port_are_sent_away():
    port, joined = free_port(), []

    def join(i):
        joined.append(Peers.join(Cluster(f"127.0.0.1:{port}", 2, i, "x"), 20, End()))

    hub = threading.Thread(target=join, args=(0,))
    hub.start()
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as s:
                s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            break
        except OSError:
            time.sleep(0.01)
    join(1)
    hub.join(20)
    assert joined[0].names()[0] == joined[1].names()[0]


def one_acts(which, act):
    """The others wait for the end that follows from it."""

    def call(peers, end):
        peers.exchange("a", 0, 10)
        time.sleep(1.0)  # until all have their answer
        return act(peers) if peers.cluster.process_id == which else end.wait(20)

    assert together(3, call) == [None if i == which else True for i in range(3)]


@pytest.mark.parametrize("dead", [0, 2])
def test_a_death_ends_all_others_and_is_named(dead, capsys):
    one_acts(dead, fall_silent)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    for line in said:
        assert f"stops: process {dead} ({socket.gethostname()}) died" in line
        assert "same command to resume" in line


def test_a_failure_is_told_to_all_others(capsys):
    one_acts(2, lambda peers: peers.report("process 2 failed: disk on fire"))
    said = capsys.readouterr().err
    assert said.count("stops: process 2 failed: disk on fire") == 2


@pytest.mark.parametrize("dies", [True, False])
def test_an_error_that_a_death_caused_names_the_dead(dies, capsys, monkeypatch):
    """Whether the collective breaks before or after the line closes."""
    ended = End()
    monkeypatch.setattr(multihost, "end_process", ended)
    monkeypatch.setattr(multihost, "_VERDICT_SECONDS", 20.0 if dies else 0.2)

    def call(peers, end):
        peers.exchange("a", 0, 10)
        if peers.cluster.process_id == 0:
            error = checkpoint.CheckpointError("could not save: connection reset")
            return multihost._end_together(peers, error, str)
        if not dies:
            return end.wait(20)
        time.sleep(0.5)  # the error of process 0 comes first
        fall_silent(peers)

    together(2, call)
    said = capsys.readouterr().err
    assert ended.is_set()
    if dies:
        assert said.count("stops: ") == said.count("\n") == 1
        assert f"process 1 ({socket.gethostname()}) died" in said
    else:
        assert said.startswith("could not save: connection reset\n")
        assert "stops: process 0" in said and "failed: could not save" in said


def test_who_does_not_come_in_time_is_named(capsys):
    def call(peers, end):
        if peers.cluster.process_id == 1:
            return end.wait(20)
        return peers.exchange("the check", 0, 0.5)

    first, second, third = together(3, call)
    assert isinstance(first, PeerError) and second and isinstance(third, PeerError)
    said = capsys.readouterr().err
    assert said.count("process 1 did not come to 'the check' within 0.5 s") == 3


def test_a_body_that_takes_too_long_ends_all(capsys):
    def call(peers, end):
        if peers.cluster.process_id == 1:
            with peers.time_limit("nothing", 20):
                pass
            with peers.time_limit("the devices", 0.2):
                end.wait(20)
        return end.wait(20)

    assert together(3, call) == [True] * 3
    said = capsys.readouterr().err
    assert said.count("needed more than 0.2 s for the devices") == 3


def test_the_end_of_a_run_is_no_death(capsys):
    def call(peers, end):
        peers.close()
        fall_silent(peers)
        return end.wait(0.5)

    assert together(2, call) == [False, False]
    assert capsys.readouterr().err == ""


def test_processes_that_do_not_meet_are_a_message(monkeypatch):
    monkeypatch.setattr(cli, "_ARGV", ["train"])
    assert cli.explain(PeerError("nobody came")) == "scm train: nobody came"


# --- Agreement ---------------------------------------------------------------------


def test_differences_name_process_key_and_both_values():
    facts = [{"a": "1", "b": "2"}, {"a": "1", "b": "2"}, {"a": "3"}]
    text = multihost.differences(["p0", "p1", "p2"], facts)
    assert "a: 3 on p2, 1 on p0" in text and "b: (absent) on p2, 2 on p0" in text
    assert "p1" not in text
    assert multihost.differences(["p0", "p1"], facts[:2]) == ""


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_directory_that_is_not_shared(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(multihost, "_SHARED_SECONDS", 0.5)

    def call(peers, end):
        index = 0 if shared else peers.cluster.process_id
        multihost.check_shared(peers, tmp_path / str(index))

    errors = together(2, call)
    if shared:
        assert errors == [None, None]
        assert os.listdir(tmp_path / "0") == []
    else:
        assert all("process 1" in str(e) and "cannot see" in str(e) for e in errors)


def test_alone_nothing_is_asked():
    with multihost.joined(None, {}, str) as peers:
        assert peers is None
        multihost.check_shared(peers, "/nonexistent")
