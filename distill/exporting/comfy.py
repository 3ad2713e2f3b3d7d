"""An example workflow for ComfyUI, in the format of its API (`/prompt`), that names sampler, sigmas, steps and cfg.

ComfyUI has no timesteps: its samplers take the noise levels sigma / alpha (of a flow: sigma), which `ManualSigmas`
passes. The sampler "lcm" denoises and adds noise again, as the student does.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LEAST = 4.8973451890853435e-08  # ComfyUI's alpha^2 in place of a zero at the end of a schedule
KINDS = {"epsilon": "eps", "v_prediction": "v_prediction", "sample": "x0"}  # ModelSamplingDiscrete's names


def sigmas(pipe: Any, record: Mapping[str, Any], entry: Mapping[str, Any]) -> list[float]:
    """ComfyUI's noise levels of a call: sigma / alpha of each step (of a flow: sigma), then 0.

    Args:
        pipe: The exported pipeline.
        record: The contents of `distill.json`.
        entry: One of its `calls`.
    """
    count = entry["num_steps"]
    if record.get("preconditioned"):
        raise ValueError(
            "--format single-file needs a teacher without EDM's preconditioning, got a student of one: front ends know "
            "the preconditioning of few published files only; use --format diffusers or lora"
        )
    if record.get("timesteps"):
        if known_schedule(pipe.scheduler.alphas_cumprod) is None:
            raise ValueError(
                "--format single-file needs a teacher with Stable Diffusion's noise schedule, with or without zero "
                "terminal SNR: ComfyUI and A1111 know no other; use --format diffusers"
            )
        table = pipe.scheduler.alphas_cumprod.double().clamp_min(LEAST)
        levels = [float(((1 - table[n]) / table[n]).sqrt()) for n in record["timesteps"][:count]]
    elif hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError("a workflow for ComfyUI needs a native export: set export.schedule=native and export again")
    else:
        scale = record["teacher"].get("sigma_data", 1.0)
        levels = [_flow_level(t, scale) for t in record["times"][:count]]
    return [*levels, 0.0]


def _flow_level(t: float, sigma_data: float) -> float:
    """sigma of X = (1 - sigma) X0 + sigma z at an angle in radians: tan t = sigma / ((1 - sigma) sigma_data)."""
    return sigma_data * math.sin(t) / (math.cos(t) + sigma_data * math.sin(t))


def known_schedule(alphas_cumprod: Tensor) -> dict[str, bool] | None:
    """What ComfyUI needs to have a noise schedule.

    It finds the timestep of a noise level in its own schedule, that of Stable Diffusion. With another one it would call
    the network with other timesteps than the student was trained at.

    Args:
        alphas_cumprod: A scheduler's cumulative products of alpha (num_train_timesteps,).

    Returns:
        The input `zsnr` of ModelSamplingDiscrete: whether the schedule has zero terminal SNR. None: ComfyUI does not
        have the schedule.
    """
    alpha = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).sqrt()
    rescaled = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])  # Lin et al. 2023, arXiv 2305.08891, algorithm 1
    own = alphas_cumprod.double().cpu().sqrt()
    for schedule, zero_snr in ((alpha, False), (rescaled, True)):
        if own.shape == schedule.shape and torch.allclose(own, schedule, rtol=1e-3, atol=3e-4):
            return {"zsnr": zero_snr}
    return None


def workflow(pipe: Any, record: Mapping[str, Any], file: str) -> dict[str, Any]:
    """A workflow that samples the largest number of steps of `record` from a checkpoint file.

    Args:
        pipe: The exported pipeline.
        record: The contents of `distill.json`.
        file: Name of the file, in ComfyUI's folder `models/checkpoints`.
    """
    levels = sigmas(pipe, record, record["calls"][-1])
    kind = type(pipe).__name__
    latent = "EmptyLatentImage" if "XL" in kind or kind == "StableDiffusionPipeline" else "EmptySD3LatentImage"
    network = pipe.components.get("transformer") or pipe.unet
    side = getattr(network.config, "sample_size", None) or pipe.default_sample_size
    height, width = side if isinstance(side, list | tuple) else (side, side)
    model: list[Any] = ["1", 0]
    nodes: dict[str, Any] = {
        "1": _node("CheckpointLoaderSimple", ckpt_name=file),
        "2": _node("CLIPTextEncode", text="a photo of ...", clip=["1", 1]),
        "3": _node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": _node(latent, width=width * pipe.vae_scale_factor, height=height * pipe.vae_scale_factor, batch_size=1),
        "5": _node("KSamplerSelect", sampler_name="lcm"),
        "6": _node("ManualSigmas", sigmas=", ".join(f"{level:.6f}" for level in levels)),
        "7": _node(
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=0,
            cfg=1.0,
            positive=["2", 0],
            negative=["3", 0],
            sampler=["5", 0],
            sigmas=["6", 0],
            latent_image=["4", 0],
        ),
        "8": _node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": _node("SaveImage", images=["8", 0], filename_prefix="student"),
    }
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        kind, schedule = KINDS[pipe.scheduler.config.prediction_type], known_schedule(pipe.scheduler.alphas_cumprod)
        assert schedule is not None  # `sigmas` has refused it
        if kind != "eps" or schedule["zsnr"]:
            nodes["10"] = _node("ModelSamplingDiscrete", model=model, sampling=kind, **schedule)
            nodes["7"]["inputs"]["model"] = ["10", 0]
    return nodes


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
