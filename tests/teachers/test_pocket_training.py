"""The training loop of the pocket teachers' makers."""

import argparse
import math

import pytest
import torch

from benchmarks.pocket.machine import Machine, add_options, chosen
from benchmarks.pocket.stored import cached, integers, statistics
from benchmarks.pocket.training import Schedule, average_path, train


def fit(state, limits=(99,), steps=8, **options):
    """Train a layer, interrupted at each limit, and return its averaged weight."""
    weight = None
    for limit in limits:
        torch.manual_seed(0)
        model, drawn = torch.nn.Linear(2, 1), []

        def loss(rng, model=model, limit=limit, drawn=drawn):
            if rng.initial_seed() == limit:
                raise KeyboardInterrupt
            drawn.append(rng.initial_seed())
            value = model(torch.randn(4, 2, generator=rng)).square().mean()
            return value, {"loss": value}

        try:
            weight = train("test", model, loss, steps, 1e-2, state, ema=0.9, save_every=2, **options).weight
        except KeyboardInterrupt:
            continue
    return weight, drawn


def test_training_resumes_where_it_stopped(tmp_path):
    resumed, drawn = fit(tmp_path / "a.pt", (5, 99))
    whole, every = fit(tmp_path / "b.pt")
    assert torch.equal(resumed, whole)
    assert drawn == [4, 5, 6, 7]
    assert every == list(range(8))
    stored = torch.load(average_path(tmp_path / "a.pt"), weights_only=True)
    assert torch.equal(stored["weight"], whole)


def test_a_seed_shifts_the_draws(tmp_path):
    assert fit(tmp_path / "a.pt", seed=1000)[1] == list(range(1000, 1008))


def test_training_ends_with_its_time(tmp_path):
    assert fit(tmp_path / "a.pt", machine=Machine(end=-math.inf))[1] == []


def test_a_schedule_follows_steps_or_time():
    time = [0.0]
    schedule = Schedule(steps=10, end=100.0, now=lambda: time[0])
    assert [schedule.progress(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    time[0] = 80.0
    assert schedule.progress(5) == 0.8
    time[0] = 200.0
    assert schedule.progress(5) == 1.0
    time[0] = 0.0
    resumed = Schedule(steps=10, end=100.0, progress=0.6, now=lambda: time[0])
    time[0] = 50.0
    assert resumed.progress(3) == pytest.approx(0.8)
    assert Schedule(steps=0, end=None).progress(0) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", "0"], "--minutes must be above 0 and finite, got 0"),
        (["--minutes", "nan"], "--minutes must be above 0 and finite, got nan"),
        (["--judge-steps", "0"], "--judge-steps must be at least 1, got 0"),
        (["--device", "toaster"], '--device must be "cpu" or a CUDA device, got "toaster"'),
        (["--device", "meta"], "--device must be cpu"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--judge-steps", type=int, default=5)
    add_options(parser)
    with pytest.raises(SystemExit):
        chosen(parser, parser.parse_args(options))
    assert message in capsys.readouterr().err


def test_a_machine_shares_its_time():
    parser = argparse.ArgumentParser()
    add_options(parser)
    machine = chosen(parser, parser.parse_args(["--minutes", "10", "--device", "cpu", "--no-graph"]))
    assert not machine.graph
    assert not machine.gpu
    assert machine.end - machine.share(0.25).end == pytest.approx(450, abs=1)
    assert Machine().share(0.5) == Machine()


def test_stored_values(tmp_path):
    built = []

    def build():
        built.append(1)
        return {"x": torch.arange(3)}

    for _ in range(2):
        assert torch.equal(cached(tmp_path / "x.pt", build)["x"], torch.arange(3))
    assert len(built) == 1
    assert integers(torch.tensor([0.26, -100.0]), 0.25).tolist() == [1, -127]
    features = torch.randn(50, 3)
    found = statistics(features, 10)
    assert found["features"].shape == (10, 3)
    torch.testing.assert_close(found["covariance"], torch.cov(features.double().T))
