"""What torchrun's agent handles when a process of a run dies, what it misses, and what the watchdog adds."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.slow

SCRIPT = """\
import os, sys, time
import torch.distributed as dist
from distill.training.watchdog import Watchdog
case, rank = sys.argv[1], int(os.environ["RANK"])
dist.init_process_group("gloo")
watchdog = None if case.startswith("agent") else Watchdog(rank, 2, heartbeat=0.2, timeout=1.0)
dist.barrier()
if watchdog:
    watchdog.start()
os.write(1, b"started\\n")  # one write: two processes share the pipe
if case == "finished":
    time.sleep(1.5 * rank)
    watchdog.stop(finished=True)
    time.sleep(1.5)
    sys.exit(0)
if case == "failed" and rank == 1:
    watchdog.stop(finished=False)
time.sleep(100)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "run.py"
    file.write_text(SCRIPT)
    return file


def launch(script, case):
    """Two processes under torchrun, as accelerate's launcher starts them; returns torchrun and the second process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    agent = subprocess.Popen(
        [*command, str(script), case],
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


def test_agent_ends_the_run_if_a_process_is_killed(script):
    agent, children, second = launch(script, "agent")
    try:
        second.kill()
        assert agent.wait(timeout=30) != 0
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    finally:
        kill_all(agent, children)


def test_agent_does_not_notice_a_suspended_process(script):
    agent, children, second = launch(script, "agent")
    try:
        second.suspend()
        time.sleep(10)
        assert agent.poll() is None
    finally:
        kill_all(agent, children)


def test_watchdog_ends_the_run_if_a_process_is_suspended(script):
    """The agent then ends the suspended process with SIGKILL, 30 seconds after its SIGTERM."""
    agent, children, second = launch(script, "watched")
    try:
        second.suspend()
        _, errors = agent.communicate(timeout=90)
        assert agent.returncode != 0
        assert "process 1 has not responded for 1 seconds; process 0 stops" in errors
    finally:
        kill_all(agent, children)


def start_without_agent(script, case):
    """Two processes as a cluster's scheduler starts them, without an agent; the first one has the store."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    variables = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    first, second = (
        subprocess.Popen(
            [sys.executable, str(script), case],
            env=variables | {"RANK": rank, "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    assert [process.stdout.readline() for process in (first, second)] == ["started\n", "started\n"]
    return first, second


@pytest.mark.parametrize("case", ["suspended", "failed", "finished"])
def test_watchdog_without_an_agent(script, case):
    first, second = start_without_agent(script, case)
    try:
        if case == "suspended":
            second.send_signal(signal.SIGSTOP)
        _, errors = first.communicate(timeout=30)
        if case == "finished":
            assert first.returncode == 0 and second.wait(timeout=30) == 0
        else:
            assert first.returncode == 1 and "process 1 has not responded" in errors
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_watchdog_ends_the_others_if_the_process_with_the_store_is_suspended(script):
    first, second = start_without_agent(script, "watched")
    try:
        first.send_signal(signal.SIGSTOP)
        _, errors = second.communicate(timeout=30)
        assert second.returncode == 1 and "error: process 0 " in errors and "process 1 stops" in errors
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_watchdog_ends_the_run_if_the_agent_with_the_store_is_suspended(script):
    agent, children, _ = launch(script, "watched")
    try:
        agent.send_signal(signal.SIGSTOP)
        _, alive = psutil.wait_procs(children, timeout=30, callback=None)
        assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive)  # the agent reaps them once it continues
        agent.send_signal(signal.SIGCONT)
        _, errors = agent.communicate(timeout=60)
        assert agent.returncode != 0 and "the launcher on its machine" in errors
    finally:
        kill_all(agent, children)


def test_watchdog_lets_a_run_continue_whose_processes_were_all_suspended(script):
    """As with Ctrl-Z and fg in a terminal."""
    first, second = start_without_agent(script, "watched")
    try:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in (first, second):
                process.send_signal(number)
            time.sleep(4)
        assert first.poll() is None and second.poll() is None
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


EARLY = """\
import os, sys
import torch.distributed as dist
from distill.training.watchdog import watched
with watched():
    dist.init_process_group("gloo")
    dist.barrier()
    sys.exit(0)
"""


def start_early(script, ranks):
    script.write_text(EARLY)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    variables = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    variables |= {"OMP_NUM_THREADS": "1", "FEWSTEP_START_TIMEOUT": "4"}
    return [
        subprocess.Popen(
            [sys.executable, str(script)], env=variables | {"RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ranks
    ]


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
def test_process_ends_if_another_one_never_starts(script, rank, message):
    """As if it were suspended while it imports: the process waits to meet it, without a step or a collective."""
    (process,) = start_early(script, rank)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and message in errors and "FEWSTEP_START_TIMEOUT=300" in errors


def test_watchdog_shares_the_store_of_the_process_group(script):
    started = start_early(script, "10")
    assert [process.wait(timeout=60) for process in started] == [0, 0], [p.stderr.read() for p in started]
