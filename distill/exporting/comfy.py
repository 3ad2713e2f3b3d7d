"""An example workflow for ComfyUI, in the format of its API (`/prompt`), that names sampler, sigmas, steps and cfg.

ComfyUI has no timesteps: its samplers take the noise levels sigma / alpha (of a flow: sigma), which `ManualSigmas`
passes. The sampler "lcm" denoises and adds noise again, as the student does.
"""

import math
from collections.abc import Mapping
from typing import Any


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
        table = pipe.scheduler.alphas_cumprod.double()
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
    if getattr(pipe.scheduler.config, "prediction_type", None) == "v_prediction":
        nodes["10"] = _node("ModelSamplingDiscrete", model=model, sampling="v_prediction", zsnr=False)
        nodes["7"]["inputs"]["model"] = ["10", 0]
    return nodes


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
