"""The section of a model card on other schedulers, adapters, pipelines and front ends."""

from typing import Any

from diffusers import DiffusionPipeline

from distill.exporting.model_card.front_ends import PLACEHOLDER
from eval.pipelines.signatures import parameters

UNETS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
ONE_FILE = (*UNETS, "StableDiffusion3Pipeline", "FluxPipeline")

NO_STEP = "the pipeline raises an error, or, for Stable Diffusion XL, returns the noised image"


def usage_section(record: dict[str, Any], kind: type[DiffusionPipeline]) -> str:
    """What works in addition to the calls on the card, and how; "" for pipelines of other media than images.

    Args:
        record: The contents of `distill.json`.
        kind: Class of the pipeline.
    """
    if "medium" in record:
        return ""
    timesteps = record.get("timesteps")
    if timesteps is None:
        return "" if record.get("schedule") == "bent" else _section(_files(record, kind), "")
    listed = ", ".join(map(str, timesteps))
    intro = (
        "The pipeline keeps the teacher's own noise schedule: at timestep n its latent has the teacher's noise level "
        f"of n. The student's timesteps are {listed}.\n\n"
    )
    lines = [_schedulers(timesteps, kind), *_adapters(kind), *_images(record, kind, timesteps), *_files(record, kind)]
    return _section(lines, intro)


def _section(lines: list[str], intro: str) -> str:
    if not lines:
        return ""
    return "\n## With other schedulers, adapters and front ends\n\n" + intro + "".join(f"- {line}\n" for line in lines)


def _schedulers(timesteps: list[int], kind: type[DiffusionPipeline]) -> str:
    text = "**Schedulers.** `LCMScheduler.from_config(pipe.scheduler.config)` gives the same samples."
    if "timesteps" not in parameters(kind):
        return text
    text += f" With `LCMScheduler.from_config` of the teacher's config, pass `timesteps={timesteps}`"
    text += " too." if timesteps[0] != 999 else ", or only `num_inference_steps=1` for one step."
    return text + (
        " diffusers warns that such timesteps are not on the original schedule; the student was made for them."
    )


def _adapters(kind: type[DiffusionPipeline]) -> list[str]:
    if kind.__name__ not in UNETS:
        return []
    return [
        "**ControlNet, IP-Adapter, style LoRA.** Those of the teacher load as they do on the teacher's pipeline.",
        "**A ControlNet from the student.** `ControlNetModel.from_unet(unet)` takes "
        f'`unet = UNet2DConditionModel.from_pretrained("{PLACEHOLDER}", subfolder="unet", '
        "time_cond_proj_dim=None)`. It raises an error for `pipe.unet`, whose input for a guidance scale switches "
        "classifier-free guidance off; a ControlNet has no such input.",
    ]


def _images(record: dict[str, Any], kind: type[DiffusionPipeline], timesteps: list[int]) -> list[str]:
    if kind.__name__ not in UNETS:
        return []
    first = timesteps[0]
    if record.get("consistency"):
        return [
            f"**Image-to-image.** `timesteps=[n], strength=1.0` with n from 1 to {first}: the image is noised to "
            f"timestep n; a strength s is n = {first} s. `num_inference_steps=1` with `strength` below 1 has no step "
            f"left: {NO_STEP}.",
            "**Inpainting** works with the calls above and `strength=1.0`.",
        ]
    return [
        f"**Image-to-image.** Only with the calls above and `strength=1.0`: the student was trained at {timesteps}. "
        f"With a smaller strength a one-step student has no step left: {NO_STEP}.",
        "**Inpainting** works with the calls above and `strength=1.0`.",
    ]


def _files(record: dict[str, Any], kind: type[DiffusionPipeline]) -> list[str]:
    found = []
    if kind.__name__ in ONE_FILE and not record.get("preconditioned") and not record.get("own_schedule"):
        found.append(
            "**ComfyUI, A1111.** `fewstep export RUN student.safetensors --format single-file` writes one file in the "
            'original layout, and a ComfyUI workflow with the sampler "lcm", the sigmas, the steps and cfg 1.'
        )
    if "lora" in record:
        found.append("**LoRA for ComfyUI and A1111.** `fewstep export RUN lora.safetensors --format lora`.")
    return found
