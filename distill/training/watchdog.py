"""Ends a process if another process of its run stops responding: suspended, blocked, or on a lost machine.

torchrun's agent, which accelerate's launcher also uses, stops the run within seconds if a process of its machine exits
or is killed. It does not notice a process that exists but does not run (suspended, or blocked in a system call), nor
the loss of another machine; the remaining processes would then wait in a collective operation, or for the process to
join them, until a timeout of hours. `tests/faults/test_watchdog.py` shows both.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

HEARTBEAT = 3.0  # seconds between two heartbeats of a process
TIMEOUT = 30.0  # seconds without a heartbeat after which a process counts as not responding
START = 40.0  # seconds in which every process must send its first heartbeat after this one; imports differ in duration
START_VARIABLE = "FEWSTEP_START_TIMEOUT"  # replaces START
DONE = "-1"


class Watchdog(threading.Thread):
    """Ends this process if another process of the run stops responding without exiting, or never starts.

    Every process increments a counter in the run's store and reads the counters of the others, from before the
    processes meet. The store is part of the first process, or of its launcher. If that does not respond, calls of the
    store never return, so a second thread makes them, and this thread only compares times.

    Args:
        rank: This process.
        world_size: Number of processes.
        heartbeat: Seconds between two increments.
        timeout: Seconds without an increment after which a process counts as not responding.
        start_timeout: Seconds that this process waits for the first increment of the others.
    """

    runs = 0  # number of runs in this process; each run has its own keys in the store
    watching = False  # whether a watchdog runs in this process

    def __init__(
        self,
        rank: int,
        world_size: int,
        heartbeat: float = HEARTBEAT,
        timeout: float = TIMEOUT,
        start_timeout: float = START,
    ) -> None:
        super().__init__(daemon=True, name="watchdog")
        self.rank, self.heartbeat, self.timeout, self.start_timeout = rank, heartbeat, timeout, start_timeout
        self._finished = threading.Event()
        self._exchanger = threading.Thread(target=self._exchange, daemon=True, name="heartbeat")
        self._last = ""  # written to the own counter after the last exchange, if not empty
        self._keys = [f"fewstep/{Watchdog.runs}/{other}" for other in range(world_size)]
        self._values = [""] * world_size  # the newest counters that were read; "" before the first increment
        self._count = 0
        Watchdog.runs += 1
        self._store: dist.TCPStore | None = None
        if dist.is_initialized():  # the processes have met
            self._beat()

    def start(self) -> None:
        """Start to watch."""
        Watchdog.watching = True
        self._exchanger.start()
        super().start()

    def run(self) -> None:
        """Compare heartbeats until `stop` is called."""
        previous = time.monotonic()
        last = [("", previous)] * len(self._keys)
        while not self._finished.wait(self.heartbeat):
            now = time.monotonic()
            if now - previous > self.heartbeat + self.timeout / 3:  # this process itself was suspended: start again
                last = [(value, now) for value, _ in last]
            previous = now
            last = [
                (value, now) if value != before else (before, since)
                for value, (before, since) in zip(self._values, last, strict=True)
            ]
            limits = [self.timeout if value else self.start_timeout for value, _ in last]
            late = [
                other
                for other, ((value, since), limit) in enumerate(zip(last, limits, strict=True))
                if value != DONE and now - since > limit
            ]
            if late:
                self._exit(late, started=bool(last[late[0]][0]))

    def _exchange(self) -> None:
        """Send and read counters. Blocks for ever if the store's machine or process does not respond."""
        wait = 0.0
        while not self._finished.wait(wait):
            wait = self.heartbeat
            try:
                self._beat()
            except Exception:  # no store yet, or it has ended: the counters that were read no longer change
                continue
        if self._last and self._store is not None:
            with suppress(Exception):  # the process of the store has already exited
                self._store.set(self._keys[self.rank], self._last)

    def _beat(self) -> None:
        if self._store is None:
            self._store = self._connect()
        self._count += 1
        self._store.set(self._keys[self.rank], str(self._count))
        read = [value.decode() for value in self._store.multi_get(self._keys)]
        self._values = ["" if value == "0" else value for value in read]

    def _connect(self) -> dist.TCPStore:
        """The store, which torch shares with the run's process group; the first process creates it without a launcher.

        Every counter exists afterwards, because reading one that does not exist would block.
        """
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=self.rank == 0 and not agent,
            timeout=timedelta(seconds=self.timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
        for key in self._keys:
            store.add(key, 0)
        return store

    def _exit(self, late: list[int], started: bool) -> None:
        if self._finished.is_set():
            return
        what = f"process {late[0]} has"
        if self.rank in late:  # the own counter cannot be read either
            what = "process 0 (or the launcher on its machine, or the network to it) has"
        problem, advice = f"not responded for {self.timeout:.0f} seconds", " to continue from the last checkpoint"
        if not started:
            problem = f"not started {self.start_timeout:.0f} seconds after process {self.rank}"
            advice = f", with {START_VARIABLE}=300 if it starts slowly"
        print(
            f"\nerror: {what} {problem}; process {self.rank} stops. Run the same command again{advice}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    def stop(self, finished: bool) -> None:
        """Stop both threads, and wait for them, but not for a store that does not respond.

        A thread that returns from a call of the store while Python exits would abort the process.

        Args:
            finished: Whether this process is done. Otherwise the others stop when its heartbeats are missing.
        """
        Watchdog.watching = False
        self._last = DONE if finished else ""
        self._finished.set()
        self._exchanger.join(timeout=HEARTBEAT)


@contextmanager
def watched() -> Iterator[None]:
    """Watch the other processes of a run that a launcher or scheduler started, from before they meet until the end.

    Raises:
        ValueError: If a variable of the environment that describes the processes is not a number.
    """
    world_size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if world_size == 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield
        return
    watchdog = Watchdog(int(rank), int(world_size), start_timeout=_number(START_VARIABLE, START))
    watchdog.start()
    finished = False
    try:
        yield
        finished = True
    except SystemExit:
        finished = True
        raise
    finally:
        watchdog.stop(finished)


def _number(name: str, default: float) -> float:
    value = os.environ.get(name) or default
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} in the environment must be a number, got {value!r}") from None
