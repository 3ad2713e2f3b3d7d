"""A diffusers network seen in canonical time. Teacher, student and fake score all are one; the network stays native."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from teachers.core.trigflow import NoisePath, expand, to_velocity

Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
SOFT_WIDTH = 0.25  # radians over which a ceiling takes effect
Condition = Mapping[str, Tensor]  # the network's own keyword arguments, first dimension the batch
Call = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]  # (network, sample, timestep, cond) -> output


def plain_call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """The call of a network whose condition is its keyword arguments. Families with nested or packed ones have another.

    sample (B, C, H, W) native, timestep (B,) native; returns (B, C or more, H, W).
    """
    return network(sample, timestep=timestep, **cond, return_dict=False)[0]


class Denoiser(nn.Module):
    """`network(sample, timestep=..., **cond)` of some prediction type on some native path, as a TrigFlow velocity.

    `call`: how the network takes its arguments (`plain_call`); a top-level function, so that copies share it.

    `max_angle`: None reads the network's epsilon at the angle t itself, x0 = (x_t - sin(t) z) / cos(t), which multiplies
    its errors by 1 / cos(t): 15 at the end of Stable Diffusion's schedule. A number (radians) reads it at `output_angle(t)`,
    equal to t up to `max_angle - SOFT_WIDTH` and levelling off below `max_angle`: a trainable student gets used to it at once.

    `time_scale`: None feeds the network its native timestep. A number feeds it `time_scale * t` instead: a gentle
    clock, for students whose network is differentiated in time (METHODS: a native clock of 1000 ticks makes sCM
    diverge).
    """

    def __init__(
        self,
        network: nn.Module,
        path: NoisePath,
        prediction: Prediction,
        time_scale: float | None = None,
        max_angle: float | None = None,
        call: Call = plain_call,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction type {prediction!r} is not one of {', '.join(get_args(Prediction))}")
        self.network = network
        self.path = path
        self.prediction = prediction
        self.time_scale = time_scale
        self.max_angle = max_angle
        self.call = call
        self.defaults: Condition = {}  # one row (1, ...) each: what `cond` says where it does not say so itself

    def output_angle(self, t: Tensor) -> Tensor:
        """The angle (B,) at which an epsilon network's output is read; t itself without a ceiling."""
        if self.max_angle is None or self.prediction != "epsilon":
            return t
        knee = self.max_angle - SOFT_WIDTH
        return torch.where(t <= knee, t, knee + SOFT_WIDTH * torch.tanh((t - knee).clamp_min(0) / SOFT_WIDTH))

    def timestep_input(self, t: Tensor) -> Tensor:
        """What the network is told of the angle t (B,): float32, since half precision ruins tangents."""
        return (self.path.timestep(t) if self.time_scale is None else t.double() * self.time_scale).float()

    def velocity_scale(self, t: Tensor) -> Tensor:
        """|dv / d output| (B,): how much an error of the network's output counts in its velocity."""
        if self.prediction == "epsilon":
            return torch.tan(self.output_angle(t)) / torch.sin(t)
        if self.prediction == "sample":
            return 1 / (self.path.sigma_data * torch.sin(t))
        return (self.path.scale(t) / self.path.sigma_data).to(t.dtype)

    def predict_x0_and_noise(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """The network's (x0, z) at x_t (B, ...) of unit variance and angles t (B,) in [t_min, t_max]; dtype of x_t."""
        reading, sigma_data = self.output_angle(t), self.path.sigma_data
        here = self.path.native(t)
        read = here if reading is t else self.path.native(reading)
        alpha, sigma = (expand(c, x_t).to(x_t.dtype) for c in read)
        native = expand(self.path.norm(*here), x_t).to(x_t.dtype) * x_t
        weight = next(self.network.parameters(), x_t)
        rows = {key: value.to(x_t.device).expand(len(x_t), *value.shape[1:]) for key, value in self.defaults.items()}
        cond = {**rows, **cond}
        # Half-precision weights take half-precision inputs; the clock stays in float32, and so do whole numbers.
        cond = {key: value.to(weight.dtype) if value.is_floating_point() else value for key, value in cond.items()}
        output = self.call(self.network, native.to(weight.dtype), self.timestep_input(t), cond)
        output = output[:, : x_t.shape[1]].to(x_t.dtype)  # networks that also learn a variance append it
        if self.prediction == "epsilon":
            x0 = (native - sigma * output) / (alpha * sigma_data)
            if self.max_angle is None:
                return x0, output
            t = expand(t, x_t).to(x_t.dtype)
            return x0, (x_t - torch.cos(t) * x0) / torch.sin(t)
        if self.prediction == "sample":
            return output / sigma_data, (native - alpha * output) / sigma
        if self.prediction == "v_prediction":  # v = alpha z - sigma X0 (Salimans & Ho 2022, arXiv 2202.00512)
            return (alpha * native - sigma * output) / sigma_data, sigma * native + alpha * output
        return (native - sigma * output) / sigma_data, native + alpha * output  # flow = z - X0, alpha + sigma = 1

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """v = cos(t) z - sin(t) x0 at x_t (B, ...), t (B,) in radians. Shape and dtype of x_t."""
        x0, z = self.predict_x0_and_noise(x_t, t, cond)
        return to_velocity(x0, z, t.to(x_t.dtype))

    def denoise(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """x0 = cos(t) x_t - sin(t) v: the posterior mean, or for a consistency model f(x_t, t)."""
        return self.predict_x0_and_noise(x_t, t, cond)[0]

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.velocity(x_t, t, cond)
