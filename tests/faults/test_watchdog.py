"""What torchrun's agent handles when a process of a run dies, what it misses, and what the watchdog adds."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.faults import watched
from tests.forks import Fork

pytestmark = pytest.mark.slow

SCRIPT = Path(watched.__file__)


def launch(case):
    """Two processes under torchrun, as accelerate's launcher starts them; returns torchrun and the second process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--shutdown-timeout", "2"]  # seconds from SIGTERM to SIGKILL; 30 by default
    agent = subprocess.Popen(
        [*command, str(SCRIPT), case],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert [agent.stdout.readline() for _ in "01"] == ["started\n", "started\n"]
    children = psutil.Process(agent.pid).children(recursive=True)
    return agent, children, next(child for child in children if child.environ().get("RANK") == "1")


def kill_all(agent, children):
    for process in (*children, agent):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    agent.communicate()


@pytest.mark.exhaustive
def test_agent_notices_a_killed_process_but_not_a_suspended_one():
    agent, children, second = launch("agent")
    try:
        second.suspend()
        time.sleep(4)
        assert agent.poll() is None
        second.kill()
        assert agent.wait(timeout=30) != 0
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    finally:
        kill_all(agent, children)


def test_watchdog_ends_the_run_if_a_process_is_suspended():
    """The agent then ends the suspended process with SIGKILL, some time after its SIGTERM."""
    agent, children, second = launch("watched")
    try:
        second.suspend()
        _, errors = agent.communicate(timeout=90)
        assert agent.returncode != 0
        assert "process 1 has not responded for 1 seconds; process 0 stops" in errors
    finally:
        kill_all(agent, children)


def variables():
    """The variables of two processes that a cluster's scheduler starts; the first one has the store."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    return {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}


@pytest.fixture
def start_two(tmp_path):
    """Function start_two(case) -> two processes without an agent, which have met."""
    started = []

    def start(case):
        shared = variables()
        started.extend(Fork(tmp_path / r, watched.run, case, variables=shared | {"RANK": r}) for r in "01")
        for fork in started:
            fork.wait_for("started")
        return started

    yield start
    for fork in started:
        fork.kill()


@pytest.mark.parametrize("case", ["suspended", "failed", "finished"])
@pytest.mark.exhaustive
def test_watchdog_without_an_agent(start_two, case):
    first, second = start_two(case)
    if case == "suspended":
        os.kill(second.process.pid, signal.SIGSTOP)
    if case == "finished":
        assert first.wait(30) == 0 and second.wait(30) == 0
    else:
        assert first.wait(30) == 1 and "process 1 has not responded" in first.error


@pytest.mark.exhaustive
def test_watchdog_ends_the_others_if_the_process_with_the_store_is_suspended(start_two):
    first, second = start_two("watched")
    os.kill(first.process.pid, signal.SIGSTOP)
    assert second.wait(30) == 1 and "error: process 0 " in second.error and "process 1 stops" in second.error


@pytest.mark.exhaustive
def test_watchdog_ends_the_run_if_the_agent_with_the_store_is_suspended():
    agent, children, _ = launch("watched")
    try:
        agent.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 30
        # The agent reaps them once it continues.
        while any(child.status() != psutil.STATUS_ZOMBIE for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        agent.send_signal(signal.SIGCONT)
        _, errors = agent.communicate(timeout=60)
        assert agent.returncode != 0 and "the launcher on its machine" in errors
    finally:
        kill_all(agent, children)


def test_watchdog_lets_a_run_continue_whose_processes_were_all_suspended(start_two):
    """As with Ctrl-Z and fg in a terminal."""
    started = start_two("watched")
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for fork in started:
            os.kill(fork.process.pid, number)
        time.sleep(4)
    assert all(fork.process.is_alive() for fork in started)


def start_early(folder, ranks):
    shared = variables() | {"FEWSTEP_START_TIMEOUT": "4"}
    return [Fork(folder / rank, watched.meet, variables=shared | {"RANK": rank}) for rank in ranks]


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ("0", "process 1 has not started 4 seconds after process 0; process 0 stops"),
        (
            "1",
            "or the network to it) has not started 4 seconds after process 1; process 1 stops",
        ),
    ],
)
@pytest.mark.first_by_default
def test_process_ends_if_another_one_never_starts(tmp_path, rank, message):
    """As if it were suspended while it imports: the process waits to meet it, without a step or a collective."""
    (process,) = start_early(tmp_path, rank)
    assert process.wait() == 1
    assert message in process.error and "FEWSTEP_START_TIMEOUT=300" in process.error


def test_watchdog_shares_the_store_of_the_process_group(tmp_path):
    started = start_early(tmp_path, "10")
    assert [process.wait() for process in started] == [0, 0], [process.error for process in started]
