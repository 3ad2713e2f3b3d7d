"""`Denoiser`: a diffusers network of any prediction type, evaluated in canonical time (TrigFlow)."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from teachers.core.noise_path import NoisePath
from teachers.core.trigflow import expand, to_velocity, to_x0
from teachers.networks.storage import dtype_parameter

Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "edm_epsilon", "edm_v_prediction"]
SOFT_WIDTH = 0.25  # radians below max_angle over which the output angle levels off
EDM = ("edm_epsilon", "edm_v_prediction")
Condition = Mapping[str, Tensor]  # keyword arguments of the network; the first dimension is the batch
Call = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]  # (network, sample, timestep, cond) -> output


def default_call(network: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """Call a network that takes its condition as keyword arguments.

    Args:
        network: A diffusers network.
        sample: Native noisy sample, (B, C, H, W).
        timestep: Native timesteps, (B,).
        cond: Further keyword arguments.

    Returns:
        The network's output, (B, C or more, H, W).
    """
    output: Tensor = network(sample, timestep=timestep, **cond, return_dict=False)[0]
    return output


class Denoiser(nn.Module):
    """A network of some prediction type on some noise schedule, as the velocity of TrigFlow's ODE.

    Teacher, student and fake score are all denoisers. The network keeps its native inputs and outputs.

    Args:
        network: The diffusers network.
        path: The noise schedule that it was trained with.
        prediction: What it predicts: epsilon, sample (x0), v_prediction, flow_prediction, or with EDM's preconditioning
            (`Edm`) edm_epsilon, which is -v of TrigFlow, or edm_v_prediction, which is v. EDM's schedulers of diffusers
            call these epsilon and v_prediction.
        time_scale: None: the network receives its native timestep. A number: it receives the rescaled time
            `time_scale * t` instead. Students whose network is differentiated in time need it, because sCM diverges
            on native timesteps 0..999.
        max_angle: None: an epsilon network is evaluated at the angle t itself, x0 = (x_t - sin(t) z) / cos(t), which
            multiplies its errors by 1 / cos(t): 15 at the end of Stable Diffusion's schedule. A number, in radians: it
            is evaluated at `output_angle(t)`, which stays below `max_angle`. Students learn that change immediately.
        call: How the network takes its arguments. It must be a top-level function, so that copies can share it.

    Attributes:
        boundary_angle: 0: a sample network D is x0 at every angle, so nothing makes f(x, 0) = x, and a constant network
            is a consistency function with zero loss. Above 0, in radians: consistency students have that boundary
            condition, as consistency models need it (Song et al. 2023, arXiv 2303.01469, equation 5). Below
            `boundary_angle` the output is blended with the input; see `output_divisor`. Other prediction types have
            the boundary condition by themselves and ignore it.
        defaults: Values of the condition that apply if `cond` lacks the key; one row (1, ...) each.
        sample_tokens: Selects the tokens of the samples among the outputs (B, N, C) of a block that also has those of
            the prompt, as a function of these, the samples and the condition; None: all. It must be a top-level
            function.
        guidance_input: Whether an exported pipeline passes its guidance scale to the network.
        is_consistency: Whether the network maps noisy data of every angle to clean data in one evaluation, so that
            other sampling times than the exported ones are right too.

    Raises:
        ValueError: If `prediction` is unknown.
    """

    is_consistency: bool = False

    def __init__(
        self,
        network: nn.Module,
        path: NoisePath,
        prediction: Prediction,
        time_scale: float | None = None,
        max_angle: float | None = None,
        call: Call = default_call,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction type must be one of {', '.join(get_args(Prediction))}, got {prediction!r}")
        self.network = network
        self.path = path
        self.prediction = prediction
        self.time_scale = time_scale
        self.max_angle = max_angle
        self.call = call
        self.boundary_angle = 0.0
        self.defaults: Condition = {}
        self.sample_tokens: Callable[[Tensor, Tensor, Condition], Tensor] | None = None
        self.guidance_input = False

    def output_angle(self, t: Tensor) -> Tensor:
        """Return the angle at which an epsilon network is evaluated.

        It equals t up to `max_angle - SOFT_WIDTH` and levels off below `max_angle`. It is t if there is no
        `max_angle`.

        Args:
            t: Angles in radians, (B,).

        Returns:
            Angles in radians, (B,).
        """
        if self.max_angle is None or self.prediction != "epsilon":
            return t
        knee = self.max_angle - SOFT_WIDTH
        return torch.where(t <= knee, t, knee + SOFT_WIDTH * torch.tanh((t - knee).clamp_min(0) / SOFT_WIDTH))

    def inverse_output_angle(self, angle: Tensor) -> Tensor:
        """Return the angles t (B,) at which `output_angle(t)` is `angle` (B,), at most `path.t_max`."""
        if self.max_angle is None or self.prediction != "epsilon":
            return angle
        knee = self.max_angle - SOFT_WIDTH
        ratio = ((angle - knee).clamp_min(0) / SOFT_WIDTH).clamp_max(1)
        bent = (knee + SOFT_WIDTH * torch.atanh(ratio)).clamp_max(self.path.t_max)
        return torch.where(angle <= knee, angle, bent)

    def output_divisor(self, t: Tensor) -> Tensor:
        """Return g(t) of a sample network D: its velocity is F = (cos t x_t - D) / g(t).

        The definition of TrigFlow gives g = sin t, which makes f = cos t x_t - sin t F equal to D. With s = sin t and
        k = sin(boundary_angle), this function returns

            g = s                        for s >= k: f = D, so stock pipelines compute the student exactly there
            g = k / 2 + s^2 / (2 k)      for s < k: f = cos t (1 - s / g) x_t + (s / g) D, and f(x, 0) = x

        g has a continuous derivative, which the tangent needs, and is at least k / 2, so F stays bounded.

        Args:
            t: Angles in radians, (B,).

        Returns:
            g(t), (B,).
        """
        sin = torch.sin(t)
        if not self.boundary_angle:
            return sin
        knee = math.sin(self.boundary_angle)
        return torch.where(t >= self.boundary_angle, sin, knee / 2 + sin.square() / (2 * knee))

    def timestep_input(self, t: Tensor) -> Tensor:
        """Return the time that the network receives at angles t (B,), in float32: half precision ruins tangents."""
        return (self.path.network_time(t) if self.time_scale is None else t.double() * self.time_scale).float()

    def velocity_scale(self, t: Tensor) -> Tensor:
        """Return |dv / d output| (B,) at angles t (B,): how strongly an error of the output changes the velocity."""
        if self.prediction == "epsilon":
            return torch.tan(self.output_angle(t)) / torch.sin(t)
        if self.prediction == "sample":
            return 1 / (self.path.sigma_data * self.output_divisor(t))
        if self.prediction in EDM:
            return torch.ones_like(t)
        return (self.path.scale(t) / self.path.sigma_data).to(t.dtype)

    def predict_x0_and_noise(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """Evaluate the network once and convert its output to x0 and noise.

        Args:
            x_t: Noisy data of unit variance, (B, ...).
            t: Angles in radians in [t_min, t_max] of the path, (B,).
            cond: Keyword arguments of the network.

        Returns:
            (x0, z), each with the shape and dtype of `x_t`.
        """
        angle, sigma_data = self.output_angle(t), self.path.sigma_data
        at_t = self.path.native(t)
        at_angle = at_t if angle is t else self.path.native(angle)
        alpha, sigma = (expand(c, x_t).to(x_t.dtype) for c in at_angle)
        native = expand(self.path.input_norm(*at_t), x_t).to(x_t.dtype) * x_t
        parameter = dtype_parameter(self.network)
        dtype = x_t.dtype if parameter is None else parameter.dtype
        rows = {key: value.to(x_t.device).expand(len(x_t), *value.shape[1:]) for key, value in self.defaults.items()}
        cond = {**rows, **cond}
        # Half-precision weights need half-precision inputs; timesteps stay in float32, integer inputs stay integers.
        cond = {key: value.to(dtype) if value.is_floating_point() else value for key, value in cond.items()}
        output = self.call(self.network, native.to(dtype), self.timestep_input(t), cond)
        output = output[:, : x_t.shape[1]].to(x_t.dtype)  # networks with a learned variance append it as channels
        if output.shape != x_t.shape:
            raise ValueError(
                f"{type(self.network).__name__} must return the shape of its input, {tuple(x_t.shape)}, or more "
                f"channels, got {tuple(output.shape)}"
            )
        if self.prediction in EDM:  # D = c_skip X + c_out F in unit variance (Karras et al. 2022, equation 7)
            velocity = output if self.prediction == "edm_v_prediction" else -output
            t = expand(t, x_t).to(x_t.dtype)
            return to_x0(x_t, velocity, t), torch.sin(t) * x_t + torch.cos(t) * velocity
        if self.prediction == "epsilon":
            x0 = (native - sigma * output) / (alpha * sigma_data)
            if self.max_angle is None:
                return x0, output
            t = expand(t, x_t).to(x_t.dtype)
            return x0, (x_t - torch.cos(t) * x0) / torch.sin(t)
        if self.prediction == "sample":
            if self.boundary_angle:
                return self._with_boundary(x_t, t, output / sigma_data)
            return output / sigma_data, (native - alpha * output) / sigma
        if self.prediction == "v_prediction":  # v = alpha z - sigma X0 (Salimans & Ho 2022, arXiv 2202.00512)
            return (alpha * native - sigma * output) / sigma_data, sigma * native + alpha * output
        return (native - sigma * output) / sigma_data, native + alpha * output  # flow = z - X0, alpha + sigma = 1

    def _with_boundary(self, x_t: Tensor, t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, z) of a sample network's output D, in unit variance, with f(x, 0) = x; see `output_divisor`."""
        sin, cos, divisor = (expand(value, x_t).to(x_t.dtype) for value in (t.sin(), t.cos(), self.output_divisor(t)))
        ratio = sin / divisor
        velocity = (cos * x_t - output) / divisor
        return cos * (1 - ratio) * x_t + ratio * output, sin * x_t + cos * velocity

    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return v = cos(t) z - sin(t) x0.

        Args:
            x_t: Noisy data of unit variance, (B, ...).
            t: Angles in radians, (B,).
            cond: Keyword arguments of the network.

        Returns:
            The velocity, shape and dtype of `x_t`.
        """
        x0, z = self.predict_x0_and_noise(x_t, t, cond)
        return to_velocity(x0, z, t.to(x_t.dtype))

    def denoise(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return x0 = cos(t) x_t - sin(t) v: the posterior mean, or f(x_t, t) of a consistency model.

        Args:
            x_t: Noisy data of unit variance, (B, ...).
            t: Angles in radians, (B,).
            cond: Keyword arguments of the network.

        Returns:
            x0, shape and dtype of `x_t`.
        """
        return self.predict_x0_and_noise(x_t, t, cond)[0]

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return `velocity(x_t, t, cond)`."""
        return self.velocity(x_t, t, cond)
