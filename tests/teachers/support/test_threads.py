"""The number of threads is limited to the cores that are free, before torch is imported."""

import os
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from teachers.support import threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(loads..., physical=, quota=): a machine with these loads of its logical cores, in percent, in turn."""
    monkeypatch.setattr(threads, "SECONDS", 0)
    for name in (*threads.VARIABLES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "_chosen", [])

    def make(*loads, physical=None, quota="max 100000"):
        remaining = list(loads)

        def measured(seconds=None, percpu=True):
            return remaining.pop(0) if remaining[1:] and seconds is not None else remaining[0]

        monkeypatch.setattr(psutil, "cpu_percent", measured)
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical or len(loads[0]))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(len(loads[0]))), raising=False)
        (tmp_path / "cpu.max").write_text(quota)
        monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
        threads.limit_threads()
        return os.environ.pop("OMP_NUM_THREADS", None)

    return make


def test_an_idle_machine_computes_with_every_core(machine, capsys):
    assert machine([3.0, 8.0]) is None and machine([0.0] * 8, physical=4) is None
    assert capsys.readouterr().err == ""


def test_busy_cores_are_left_to_others(machine, capsys):
    assert machine([100.0, 12.0]) == "1"
    assert capsys.readouterr().err == (
        "0.9 of 2 CPU cores are free: computing with 1 thread (set OMP_NUM_THREADS to choose)\n"
    )
    assert machine([100.0, 100.0]) == "1"
    assert machine([90.0, 0.0, 0.0, 95.0]) == "2"
    assert machine([100.0] * 2 + [0.0] * 6, physical=4) is None  # six logical cores are free
    assert machine([100.0] * 5 + [0.0] * 3, physical=4) == "3"


def test_a_short_burst_does_not_count(machine):
    assert machine([100.0, 100.0], [100.0, 40.0], [0.0, 5.0]) is None


def test_a_containers_quota_counts(machine):
    assert machine([0.0] * 8, quota="200000 100000") == "2"
    assert machine([0.0] * 2, quota="150000 100000") == "1"
    assert machine([0.0] * 2, quota="damaged") is None


def test_nothing_is_limited_where_the_load_is_unknown(machine, monkeypatch):
    def hidden(self):
        raise FileNotFoundError("/proc/stat")

    monkeypatch.setattr(threads.Load, "free_at_start", hidden)
    assert machine([100.0, 100.0]) is None and not threads._chosen


def test_users_and_launchers_choose_themselves(machine, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert machine([100.0, 100.0]) is None
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert machine([100.0, 100.0]) == "2"


def test_the_number_follows_the_load(monkeypatch):
    """Two cores: another process begins, and later ends; the first measurements without it change nothing."""
    busy, own, now = [0.0, 0.0], 0.0, 0.0
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: busy)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 2)
    monkeypatch.setattr(threads, "_allowed_cores", lambda: [0, 1])
    monkeypatch.setattr(threads, "_quota", lambda: float("inf"))
    monkeypatch.setattr(threads.time, "monotonic", lambda: now)
    monkeypatch.setattr(threads.Load, "_own_seconds", lambda self: own)
    load, current, numbers = threads.Load(), 2, []
    for own_load, others in [(2.0, 0.0), (1.4, 0.6), (1.0, 1.0), *[(1.0, 0.0)] * threads.CALM, (2.0, 0.0)]:
        now, own = now + threads.INTERVAL, own + threads.INTERVAL * own_load
        busy = [50 * (own_load + others)] * 2
        current = load.threads_now(current)
        numbers.append(current)
    assert numbers == [2, 1, 1, *[1] * (threads.CALM - 1), 2, 2]
    assert load.threads_now(1) == 1  # too early


def test_nothing_follows_the_load_unless_a_command_has_chosen(monkeypatch):
    monkeypatch.setattr(threads, "_chosen", [])
    before = torch.get_num_threads()
    threads.adapt_threads()
    monkeypatch.setattr(threads, "_chosen", [SimpleNamespace(threads_now=lambda current: current + 1)])
    monkeypatch.setattr(torch, "set_num_threads", (numbers := []).append)
    threads.adapt_threads()
    assert numbers == [before + 1]
