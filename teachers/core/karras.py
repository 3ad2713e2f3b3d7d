"""`KarrasGrid`: the noise levels of Karras et al. 2022 (arXiv 2206.00364, equation 5)."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KarrasGrid:
    """Noise levels that are evenly spaced in sigma^(1 / rho).

    Attributes:
        sigma_min: The smallest noise level.
        sigma_max: The largest noise level.
        rho: The exponent; None: evenly spaced in log(sigma), a geometric grid.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float | None = 7.0

    def levels(self, fraction: Tensor) -> Tensor:
        """Noise levels in float64 at fractions of the grid in [0, 1], from 0 at sigma_min to 1 at sigma_max."""
        low, high = self._ends()
        warped = low + fraction.double().clamp(0, 1) * (high - low)
        return warped.exp() if self.rho is None else warped**self.rho

    def fraction(self, sigma: Tensor) -> Tensor:
        """The fractions of the grid, in float64, at noise levels: the inverse of `levels`, and differentiable."""
        low, high = self._ends()
        sigma = sigma.double()
        warped = sigma.log() if self.rho is None else sigma ** (1 / self.rho)
        return (warped - low) / (high - low)

    def _ends(self) -> tuple[float, float]:
        if self.rho is None:
            return math.log(self.sigma_min), math.log(self.sigma_max)
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
