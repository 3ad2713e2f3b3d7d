"""Measures of a student against an exact mixture, for `benchmarks.analytic`:

- map: relative RMS error of the student's one-step output, compared with the exact end of the probability-flow ODE from
  the same noise. "Away from boundaries" excludes noise within 0.1 of the boundary of a basin of attraction: noise whose
  exact end changes its component when it is moved by 0.1 in one of eight random directions;
- distribution: unbiased energy distance (Szekely & Rizzo 2013) between 5,000 samples and 5,000 exact ones, mean of four
  repeats. The "floor" is the 95th percentile of 40 such means between two exact sets;
- modes: the largest relative error of the fraction of 20,000 samples in one mode, and the same for exact samples. A
  mode is a component of the mixture, or one square of the checkerboard (16 components).
"""

import torch
from torch import Tensor

from teachers.core.denoiser import Denoiser
from teachers.core.sampling import sample
from teachers.families.analytic import Analytic

SAMPLES, REPEATS = 5000, 4
COMPONENTS = {"checkerboard": 16}  # components of one mode, where it is more than one


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of 2 E|X - Y| - E|X - X'| - E|Y - Y'| from samples (N, D) and (M, D)."""

    def total(a: Tensor, b: Tensor) -> float:
        return sum(torch.cdist(part, b).sum().item() for part in a.split(1000))

    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))


@torch.no_grad()
def sample_student(student: Denoiser, dim: int, times: list[float], seed: int, count: int = SAMPLES) -> Tensor:
    """Samples (count, dim) of `student` at the angles `times`, float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, dim, generator=generator)
    return sample(student, noise, times, {}, lambda: torch.randn(noise.shape, generator=generator)).double()


def distance(student: Denoiser, teacher: Analytic, times: list[float], first: int = 0, repeats: int = REPEATS) -> float:
    """Energy distance to exact samples, mean over `repeats` independent sets with seeds from `first` on."""
    mean = 0.0
    for seed in range(first, first + repeats):
        exact = teacher.mixture.sample(SAMPLES, torch.Generator().manual_seed(10_000 + seed))
        mean += energy_distance(sample_student(student, teacher.shape[0], times, seed), exact) / repeats
    return mean


def mode_error(name: str, teacher: Analytic, samples: Tensor) -> float:
    """Largest relative error of the fraction of samples in one mode; each sample counts for its most likely mode."""
    size = COMPONENTS.get(name, 1)
    weights = teacher.mixture.log_weights.exp().reshape(-1, size).sum(1)
    fraction = torch.bincount(component(teacher, samples) // size, minlength=len(weights)) / len(samples)
    return ((fraction - weights).abs() / weights).max().item()


def component(teacher: Analytic, samples: Tensor) -> Tensor:
    """The most likely component (N,) of each clean sample (N, D)."""
    ones = torch.ones(len(samples), dtype=torch.float64)
    return teacher.mixture.responsibilities(samples, ones, 1e-3 * ones).argmax(1)


class Map:
    """Noise, the exact end of the ODE from it, and which noise is near the boundary of a basin of attraction."""

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
        """Relative RMS error of the one-step map at angle `t`: away from the boundaries, and everywhere."""
        squares = (sample(student, self.noise, [t], {}, lambda: self.noise).double() - self.ends).square().sum(1)
        scale = self.ends.square().sum(1).mean()
        away = (squares[~self.near].mean() / scale).sqrt() if bool((~self.near).any()) else torch.tensor(float("nan"))
        return away.item(), (squares.mean() / scale).sqrt().item()


def floor(name: str, teacher: Analytic) -> dict[str, float]:
    """The measures between two sets of exact samples: what sampling noise alone gives."""
    generator = torch.Generator().manual_seed(3)

    def apart() -> float:
        return energy_distance(teacher.mixture.sample(SAMPLES, generator), teacher.mixture.sample(SAMPLES, generator))

    means = torch.tensor([sum(apart() for _ in range(REPEATS)) / REPEATS for _ in range(40)])
    exact = teacher.mixture.sample(REPEATS * SAMPLES, generator)
    return {"energy": means.quantile(0.95).item(), "mode_error": mode_error(name, teacher, exact)}
