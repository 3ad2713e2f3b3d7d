"""The cells of the table: each takes an exported student into one front end and returns what came of it.

A cell is the largest difference from the student's own samples, or the sentence with which the front end refuses.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    ControlNetModel,
    DiffusionPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)

from benchmarks.wild.steps import largest_gap, record_steps
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher

PROMPT = "a photo of a coat"


@dataclass
class Case:
    """An exported student.

    Attributes:
        folder: The exported pipeline.
        teacher_folder: The teacher's pipeline.
        teacher: The teacher.
        student: The student.
        record: The contents of `distill.json`.
        work: A folder for files.
    """

    folder: Path
    teacher_folder: Path
    teacher: Teacher
    student: Denoiser
    record: dict[str, Any]
    work: Path

    def load(self, **options: Any) -> Any:
        """The exported pipeline, as a user loads it."""
        pipe = DiffusionPipeline.from_pretrained(self.folder, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def factor(self) -> int:
        """Pixels for each latent pixel, along one side."""
        return self.teacher.image_size[0] // self.teacher.shape[1]

    def calls(self) -> list[dict[str, Any]]:
        """The documented calls."""
        return [entry["call"] for entry in self.record["calls"]]


def worst(case: Case, pipe: Any, student: Denoiser | None = None, **more: Any) -> float:
    """The largest difference at all documented calls, with `more` arguments."""
    gaps = []
    for call in case.calls():
        torch.manual_seed(0)
        _, steps = record_steps(pipe, {"prompt": PROMPT, **call, **more})
        gaps.append(largest_gap(student or case.student, steps))
    return max(gaps)


def documented_call(case: Case) -> float:
    return worst(case, case.load())


def default_call(case: Case) -> float:
    pipe = case.load()
    _, steps = record_steps(pipe, {"prompt": PROMPT})
    return largest_gap(case.student, steps)


def default_guidance(case: Case) -> float:
    """The documented calls without a guidance scale."""
    pipe, gaps = case.load(), []
    for call in case.calls():
        _, steps = record_steps(pipe, {"prompt": PROMPT, **{k: v for k, v in call.items() if k != "guidance_scale"}})
        gaps.append(largest_gap(case.student, steps))
    return max(gaps)


def own_lcm(case: Case) -> float:
    pipe = case.load()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return worst(case, pipe)


def teachers_lcm(case: Case) -> float:
    """`LCMScheduler` of the teacher's config, with the timesteps that the card names."""
    pipe = case.load()
    base = DiffusionPipeline.from_pretrained(case.teacher_folder).scheduler.config
    pipe.scheduler = LCMScheduler.from_config(base)
    gaps = []
    for entry in case.record["calls"]:
        timesteps = case.record["timesteps"][: entry["num_steps"]]
        _, steps = record_steps(pipe, {"prompt": PROMPT, "timesteps": timesteps, "guidance_scale": 1.0})
        gaps.append(largest_gap(case.student, steps))
    return max(gaps)


def auto_pipeline(case: Case) -> float:
    pipe = AutoPipelineForText2Image.from_pretrained(case.folder)
    pipe.set_progress_bar_config(disable=True)
    return worst(case, pipe)


def _controlled(case: Case, controlnet: Any) -> float:
    pipe = case.load()
    double = "XL" in type(pipe).__name__
    kind = StableDiffusionXLControlNetPipeline if double else StableDiffusionControlNetPipeline
    pipe = kind.from_pipe(pipe, controlnet=controlnet)
    pipe.set_progress_bar_config(disable=True)
    height, width = case.teacher.image_size
    return worst(case, pipe, image=torch.rand(1, 3, height, width), controlnet_conditioning_scale=0.7)


def controlnet(unet: Any, factor: int) -> Any:
    """A ControlNet with random outputs, of the teacher or a student; its image has `factor` pixels for a latent one."""
    torch.manual_seed(3)
    channels = (4, 8, 16, 32)[: factor.bit_length()]
    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    for block in (*made.controlnet_down_blocks, made.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1)
    return made


def teachers_controlnet(case: Case) -> float:
    unet = UNet2DConditionModel.from_pretrained(case.teacher_folder, subfolder="unet")
    return _controlled(case, controlnet(unet, case.factor()))


def students_controlnet(case: Case) -> float:
    """`ControlNetModel.from_unet` as the card writes it."""
    unet = UNet2DConditionModel.from_pretrained(case.folder, subfolder="unet", time_cond_proj_dim=None)
    return _controlled(case, controlnet(unet, case.factor()))


def students_controlnet_directly(case: Case) -> float:
    return _controlled(case, controlnet(case.load().unet, case.factor()))


def ip_adapter_weights(unet: Any, width: int = 24, tokens: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter for a UNet, in the layout of its authors."""
    rng = torch.Generator().manual_seed(5)
    cross = unet.config.cross_attention_dim

    def normal(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=rng)

    projection = {
        "proj.weight": normal(tokens * cross, width),
        "proj.bias": normal(tokens * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    layers: dict[str, torch.Tensor] = {}
    names = [name for name in unet.attn_processors if "attn2" in name]
    for index, name in enumerate(names):
        rows = len(unet.get_submodule(name.removesuffix(".processor")).to_k.weight)
        layers |= {f"{2 * index + 1}.to_{part}_ip.weight": normal(rows, cross) for part in "kv"}
    return {"image_proj": projection, "ip_adapter": layers}


def ip_adapter(case: Case) -> float:
    pipe = case.load()
    weights = ip_adapter_weights(pipe.unet)
    pipe.load_ip_adapter(copy.deepcopy(weights), subfolder=None, weight_name=None, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.8)
    student = copy.deepcopy(case.student)
    same = type(pipe).from_pipe(case.load(), unet=student.network)
    same.load_ip_adapter(weights, subfolder=None, weight_name=None, image_encoder_folder=None)
    same.set_ip_adapter_scale(0.8)
    embeds = [torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(1))]
    return worst(case, pipe, student, ip_adapter_image_embeds=embeds)


def style_lora(case: Case) -> float:
    """A LoRA file of the teacher, in diffusers' layout."""
    rng, weights, student = torch.Generator().manual_seed(2), {}, copy.deepcopy(case.student)
    for name, layer in student.network.named_modules():
        if name.endswith(("to_q", "to_v")):
            down = 0.3 * torch.randn(2, layer.in_features, generator=rng)
            up = 0.3 * torch.randn(layer.out_features, 2, generator=rng)
            weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            with torch.no_grad():
                layer.weight.add_(up @ down)
    pipe = case.load()
    pipe.load_lora_weights(weights)
    return worst(case, pipe, student)


def _from_image(case: Case, kind: Any, **more: Any) -> Any:
    pipe = kind.from_pipe(case.load())
    pipe.set_progress_bar_config(disable=True)
    height, width = case.teacher.image_size
    torch.manual_seed(0)
    return pipe, {"prompt": PROMPT, "image": torch.rand(1, 3, height, width), **more}


def image_to_image(case: Case) -> float:
    """The documented calls at strength 1."""
    pipe, call = _from_image(case, AutoPipelineForImage2Image, strength=1.0)
    gaps = [largest_gap(case.student, record_steps(pipe, {**call, **each})[1]) for each in case.calls()]
    return max(gaps)


def image_to_image_below(case: Case) -> float:
    """One step at strength 0.6."""
    pipe, call = _from_image(case, AutoPipelineForImage2Image, strength=0.6)
    return largest_gap(case.student, record_steps(pipe, {**call, **case.calls()[0]})[1])


def image_to_image_at_a_level(case: Case) -> float:
    """`timesteps=[n], strength=1`, n the second of the student's timesteps."""
    timesteps = case.record["timesteps"][-1:]
    pipe, call = _from_image(case, AutoPipelineForImage2Image, strength=1.0, timesteps=timesteps, guidance_scale=1.0)
    return largest_gap(case.student, record_steps(pipe, call)[1])


def inpainting(case: Case) -> float:
    pipe, call = _from_image(case, AutoPipelineForInpainting, strength=1.0)
    height, width = case.teacher.image_size
    mask = (torch.rand(1, 1, height, width) > 0.5).float()
    gaps = [
        largest_gap(case.student, record_steps(pipe, {**call, "mask_image": mask, **each})[1]) for each in case.calls()
    ]
    return max(gaps)


CELLS: dict[str, Callable[[Case], float]] = {
    "documented call": documented_call,
    "call without arguments": default_call,
    "without guidance_scale": default_guidance,
    "AutoPipeline": auto_pipeline,
    "LCMScheduler.from_config(student's)": own_lcm,
    "LCMScheduler.from_config(teacher's), timesteps": teachers_lcm,
    "ControlNet of the teacher": teachers_controlnet,
    "ControlNet.from_unet, as in the card": students_controlnet,
    "ControlNet.from_unet(pipe.unet)": students_controlnet_directly,
    "IP-Adapter of the teacher": ip_adapter,
    "style LoRA of the teacher": style_lora,
    "img2img, strength 1": image_to_image,
    "img2img, one step, strength 0.6": image_to_image_below,
    "img2img, timesteps=[n], strength 1": image_to_image_at_a_level,
    "inpainting, strength 1": inpainting,
}
