"""Freeze or disconnect the first process of a run, on one host and on two, and measure when the others end.

    python -m tests.faults.hosts [--only bare-1-frozen ...] [--teacher pocket]

A case is named by how processes start ("bare", as a cluster's scheduler does, or "launcher"), the number of hosts, and
what happens to the first host: its training process is suspended ("frozen"), its launcher is suspended ("agent"), all
its processes are suspended ("hung"), or its network is cut ("cut"); the first or the second training process is
suspended while it still imports ("imports", "second"). Two hosts are two network namespaces that are
connected by a pair of virtual interfaces, so they need root. Prints one line of JSON for each case; exit code 1 if a
process of another host, or another training process of the same host, still runs a minute later.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.faults import kill
from tests.settings import ROOT

LIMIT = 60.0  # seconds in which the other processes must end
CASES = (
    "bare-1-frozen", "launcher-1-frozen", "launcher-1-agent",
    "bare-2-frozen", "bare-2-cut", "launcher-2-frozen", "launcher-2-hung", "launcher-2-cut",
    "bare-1-imports", "bare-1-second", "launcher-1-imports", "launcher-1-second",
)  # fmt: skip
EARLY = ("imports", "second")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
SETTINGS = [*kill.SETTINGS, "name=run", "train.batch_size=4", "train.steps=100000"]


@contextmanager
def namespaces(hosts: int) -> Iterator[list[str]]:
    """Two connected network namespaces; yields their names, none for one host."""
    if hosts == 1:
        yield []
        return
    names = [f"fewstep-{os.getpid()}-{host}" for host in "01"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def start(how: str, hosts: list[str], overrides: list[str], output: Path) -> list[subprocess.Popen[bytes]]:
    """Start two training processes; returns the process that was started for each host, or for each rank if bare."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    address = ADDRESSES[0] if hosts else "127.0.0.1"
    variables = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if hosts:
        variables["GLOO_SOCKET_IFNAME"] = "eth0"
    train = ["-m", "distill.train", "recipes/pocket/dmd.yaml", *overrides]
    started = []
    for number in range(2 if how == "bare" or hosts else 1):
        command, own = [sys.executable, *train], {}
        if how == "bare":
            own = {"MASTER_ADDR": address, "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(number)}
            own |= {"LOCAL_RANK": "0" if hosts else str(number), "ACCELERATE_USE_CPU": "true"}
        else:
            command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
            command += ["--config_file", "recipes/accelerate/two_cpu.yaml", "--main_process_port", port]
            if hosts:
                command += ["--num_machines", "2", "--machine_rank", str(number), "--main_process_ip", address]
            command += train
        prefix = ["ip", "netns", "exec", hosts[number]] if hosts else []
        with (output / f"output{number}").open("w") as log:
            process = subprocess.Popen([*prefix, *command], cwd=ROOT, env=variables | own, stdout=log, stderr=log)
        started.append(process)
    return started


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and those that it started."""
    try:
        top = psutil.Process(process.pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def trains(process: psutil.Process, rank: str) -> bool:
    """Whether `process` is the training process `rank`."""
    return "distill.train" in process.cmdline() and process.environ().get("RANK") == rank


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_processes(started: list[subprocess.Popen[bytes]]) -> None:
    """Wait until both training processes exist; they import for seconds then."""
    while sum(is_training(process) for top in started for process in family(top)) < 2:
        time.sleep(0.02)


def is_training(process: psutil.Process) -> bool:
    try:
        return trains(process, "0") or trains(process, "1")
    except psutil.Error:  # it has not replaced its launcher's image yet
        return False


def wait_for_steps(started: list[subprocess.Popen[bytes]], output: Path) -> None:
    log = output / "run" / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) >= 4):
        time.sleep(0.1)
        if any(process.poll() is not None for process in started):
            raise ValueError("".join(file.read_text() for file in sorted(output.glob("output?"))))


def case(name: str, teacher: str, output: Path) -> tuple[dict[str, object], bool]:
    """Run one case; returns what happened, and whether the others ended in time."""
    how, hosts, what = name.split("-")
    started: list[subprocess.Popen[bytes]] = []
    with namespaces(int(hosts)) as names:
        try:
            started = start(how, names, [*SETTINGS, f"output={output}", f"teacher.path={teacher}"], output)
            if what in EARLY:
                wait_for_processes(started)
            else:
                wait_for_steps(started, output)
            everyone = [family(process) for process in started]
            flat = [process for group in everyone for process in group]
            first = next(process for process in flat if trains(process, "0"))
            if what == "cut":
                _ip("-n", names[0], "link", "set", "eth0", "down")
            targets = {"frozen": [first], "agent": [everyone[0][0]], "hung": everyone[0], "cut": [], "imports": [first]}
            targets |= {"second": [process for process in flat if trains(process, "1")]}
            for process in targets[what]:
                process.suspend()
            others = everyone[1] if names else [p for p in flat if trains(p, "1") or (what == "agent" and p == first)]
            if what == "second":
                others = [first]
            start_time = time.monotonic()
            while any(map(alive, others)) and time.monotonic() - start_time < 2 * LIMIT:
                time.sleep(0.1)
            seconds = round(time.monotonic() - start_time, 1)
        finally:
            for process in [process for top in started for process in family(top)]:
                process.kill()
            for top in started:
                top.wait()
    text = "".join(file.read_text(errors="replace") for file in sorted(output.glob("output?")))
    messages = [line[line.index("error: process") :] for line in text.splitlines() if "error: process" in line]
    return {"case": name, "the others ended after": f"{seconds} s", "message": messages[:1]}, seconds < LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="pocket", help='"pocket", or a pipeline with the same shapes')
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    args = parser.parse_args()
    all_correct = True
    for name in args.only:
        with tempfile.TemporaryDirectory() as temporary:
            result, correct = case(name, args.teacher, Path(temporary))
        all_correct &= correct
        print(json.dumps(result | {"correct": correct}), flush=True)
    sys.exit(int(not all_correct))


if __name__ == "__main__":
    main()
