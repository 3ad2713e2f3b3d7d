"""Measures of a student against an exact mixture, for `benchmarks.analytic`:

- the map: relative RMS between a student's one-step answer and the exact end of the probability-flow ODE from the same
  noise; "away" leaves out noise that lies within 0.1 of a basin's boundary (moved that far in one of eight random
  directions, its exact end falls into another component);
- the distribution: the unbiased energy distance (Szekely & Rizzo 2013) of 5,000 samples to 5,000 exact ones, the mean
  of four draws. Its "floor" is what exact sets are apart by chance, the 95th percentile of 40 such means;
- the modes: the largest relative error of a mode's share of 20,000 samples, and of as many exact ones; a mode is a
  component, and of the checkerboard, whose fine components only make up its squares, a square.
"""

import torch
from torch import Tensor

from teachers.core.denoiser import Denoiser
from teachers.core.sampling import sample
from teachers.families.analytic import Analytic

SAMPLES, DRAWS = 5000, 4
FINE = {"checkerboard": 16}  # components that are one mode together


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased, from samples (N, D) and (M, D)."""

    def total(a: Tensor, b: Tensor) -> float:
        return sum(torch.cdist(part, b).sum().item() for part in a.split(1000))

    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))


@torch.no_grad()
def draw(student: Denoiser, dim: int, times: list[float], seed: int, count: int = SAMPLES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, dim, generator=generator)
    return sample(student, noise, times, {}, lambda: torch.randn(noise.shape, generator=generator)).double()


def distance(student: Denoiser, teacher: Analytic, times: list[float], first: int = 0, draws: int = DRAWS) -> float:
    """The energy distance to exact samples, a mean over `draws` independent draws from seed `first` on."""
    found = 0.0
    for seed in range(first, first + draws):
        exact = teacher.mixture.sample(SAMPLES, torch.Generator().manual_seed(10_000 + seed))
        found += energy_distance(draw(student, teacher.shape[0], times, seed), exact) / draws
    return found


def mode_error(name: str, teacher: Analytic, samples: Tensor) -> float:
    """The largest relative error of a mode's share, samples counted for the mode that they most likely are of."""
    size = FINE.get(name, 1)
    weights = teacher.mixture.log_weights.exp().reshape(-1, size).sum(1)
    share = torch.bincount(component(teacher, samples) // size, minlength=len(weights)) / len(samples)
    return ((share - weights).abs() / weights).max().item()


def component(teacher: Analytic, samples: Tensor) -> Tensor:
    """The component (N,) that each clean sample (N, D) most likely is of."""
    ones = torch.ones(len(samples), dtype=torch.float64)
    return teacher.mixture.responsibilities(samples, ones, 1e-3 * ones).argmax(1)


class Map:
    """Noise, its exact ends, and which of it lies near a basin's boundary."""

    def __init__(self, teacher: Analytic, count: int = 2000) -> None:
        generator = torch.Generator().manual_seed(5)
        self.noise = torch.randn(count, *teacher.shape, generator=generator)
        self.ends = teacher.endpoint(self.noise)
        home = component(teacher, self.ends)
        self.near = torch.zeros(count, dtype=torch.bool)
        for _ in range(8):
            offset = torch.randn(self.noise.shape, generator=generator)
            moved = teacher.endpoint(self.noise + 0.1 * offset / offset.norm(dim=1, keepdim=True), 60)
            self.near |= component(teacher, moved) != home

    @torch.no_grad()
    def error(self, student: Denoiser, t: float) -> tuple[float, float]:
        """Relative RMS of the one-step map: away from the boundaries, and everywhere."""
        squares = (sample(student, self.noise, [t], {}, lambda: self.noise).double() - self.ends).square().sum(1)
        scale = self.ends.square().sum(1).mean()
        away = (squares[~self.near].mean() / scale).sqrt() if bool((~self.near).any()) else torch.tensor(float("nan"))
        return away.item(), (squares.mean() / scale).sqrt().item()


def floor(name: str, teacher: Analytic) -> dict[str, float]:
    """What chance does to exact samples."""
    generator = torch.Generator().manual_seed(3)

    def apart() -> float:
        return energy_distance(teacher.mixture.sample(SAMPLES, generator), teacher.mixture.sample(SAMPLES, generator))

    means = torch.tensor([sum(apart() for _ in range(DRAWS)) / DRAWS for _ in range(40)])
    exact = teacher.mixture.sample(DRAWS * SAMPLES, generator)
    return {"energy": means.quantile(0.95).item(), "mode_error": mode_error(name, teacher, exact)}
