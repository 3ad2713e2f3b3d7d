"""Stock pipelines of clips and sounds: how they are called, and what their networks receive."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AceStepPipeline, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill.exporting.recording import NoiseRecorder, recorded_steps
from eval.pipelines.networks import set_guidance
from teachers.core.cosine_path import Cosine
from teachers.core.trigflow import Flow
from teachers.loading.corrections import correct_autoencoder
from teachers.media import Video
from tests.teachers.families.stock import PROMPTS
from tests.teachers.tiny_flow_transformers import BUILDERS as FLOW_TRANSFORMERS
from tests.teachers.tiny_flows import BUILDERS as FLOWS
from tests.teachers.tiny_media import BUILDERS

NAMES = list(BUILDERS)
# Every kind of network once; the others differ in their call only.
KINDS = ["Wan 2.1", "Wan 2.2 A14B", "LTX", "CogVideoX 1.5", "HunyuanVideo", "HunyuanVideo 1.5", "AnimateDiff"]
KINDS += ["Stable Audio, short", "AudioLDM 2", "ACE-Step", *FLOWS, *FLOW_TRANSFORMERS, "CogView3-Plus", "Kandinsky 3"]
ALIKE = ["a photo of a coat", "a photo of a boot"]
LATENT = {"output_type": "latent"}


@dataclass
class Run:
    """One call of a stock pipeline.

    Attributes:
        inputs: Keyword arguments of all network calls.
        samples: Native samples before each step, as the network receives them.
        outputs: Native samples after each step.
        x0: Predictions of native clean data; empty if the scheduler does not keep them.
        angles: Angles of all steps, and of the end.
        noises: The noise that the pipeline drew.
    """

    inputs: list[dict[str, Any]]
    samples: list[Tensor]
    outputs: list[Tensor]
    x0: list[Tensor]
    angles: list[float]
    noises: list[Tensor]


def prompts_of(teacher) -> list[str]:
    """Two prompts; of one length for pipelines that would pad them to one length."""
    return ALIKE if teacher.pads_prompts else PROMPTS


def inputs_of(pipe, teacher) -> dict[str, Any]:
    """The arguments of a stock pipeline for the prompts, in a list that it may change, as Z-Image does."""
    return {"prompt": list(prompts_of(teacher))} | ({"lyrics": [""] * 2} if isinstance(pipe, AceStepPipeline) else {})


def load_stock(teacher, folder, guidance=1.0) -> Any:
    """The stock pipeline with a solver of first order, and a guider with this scale."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if teacher.denoiser.path.__class__ is Flow and not isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)
    if isinstance(teacher.denoiser.path, Cosine):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=1)
    set_guidance(pipe, guidance)
    correct_autoencoder(pipe)
    return pipe


def run(pipe, teacher, call, seed=0) -> Run:
    """Call a pipeline and record what happens."""
    calls: list[dict[str, Any]] = []
    networks = [pipe.components.get(name) for name in (teacher.network, "transformer_2")]
    hooks = [
        network.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(
                of_lists(*args)
                if args and isinstance(args[0], list)
                else of_lists(*of_omni(**kwargs))
                if "x" in kwargs
                else {"args": args} | kwargs
            ),
            with_kwargs=True,
        )
        for network in networks
        if network is not None
    ]
    x0, convert = [], getattr(pipe.scheduler, "convert_model_output", None)
    if convert is not None:

        def recorded(*args, **kwargs):
            x0.append(convert(*args, **kwargs))
            return x0[-1]

        pipe.scheduler.convert_model_output = recorded
    with recorded_steps(pipe.scheduler) as outputs, NoiseRecorder(teacher.shape) as recorder, torch.no_grad():
        torch.manual_seed(seed)  # some schedulers draw their noise from the global generator
        call = {key: value for key, value in call.items() if key != "lyrics"}
        if "negative_prompt" in call:  # some pipelines take one for each prompt only
            call["negative_prompt"] = [call["negative_prompt"]] * 2
        pipe(**inputs_of(pipe, teacher), **call, **LATENT, generator=torch.Generator().manual_seed(seed))
    for hook in hooks:
        hook.remove()
    per_step = len(calls) // len(outputs)
    first = [entry["args"][0] if entry["args"] else entry["hidden_states"] for entry in calls[::per_step]]
    return Run(
        calls,
        [teacher.unpack(x[:2]) for x in first],
        [teacher.unpack(x) for x in outputs],
        x0,
        [*teacher.denoiser.path.angle(teacher.timesteps(pipe.scheduler)).tolist(), 0.0],
        [teacher.unpack(noise) for noise in recorder.noises],
    )


def of_lists(samples, timestep, prompts) -> dict[str, Any]:
    """The inputs of Z-Image's network as a batch, with those of each prompt padded to the longest."""
    mask = pad_sequence([torch.ones(len(prompt), dtype=torch.long) for prompt in prompts], True)
    inputs = {"encoder_hidden_states": pad_sequence(prompts, True), "encoder_attention_mask": mask}
    return {"args": (), "hidden_states": torch.stack(samples), "prompt_first": True} | inputs


def of_omni(x, t, cap_feats, siglip_feats, image_noise_mask, **_) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The inputs of the network of Z-Image Omni without condition images as those of Z-Image's."""
    assert set(siglip_feats) == {None} and image_noise_mask == [[1]] * len(x)
    return [image for (image,) in x], t, [text for (text,) in cap_feats]


def conditions(run: Run, teacher, keys) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the network received with and without the prompt, in one batch or in two calls."""
    one, two = run.inputs[:2]
    keys = [key for key in keys if key in one]
    for inputs in (one, two) if "encoder_hidden_states_mask" in keys else ():
        if inputs["encoder_hidden_states_mask"] is None:  # no prompt is padded
            inputs["encoder_hidden_states_mask"] = torch.ones(inputs["encoder_hidden_states"].shape[:2])
    if teacher.medium_class is Video and teacher.network == "unet":  # once for each frame
        one = {key: value[:: teacher.shape[1]] for key, value in one.items() if key in keys}
    if "encoder_hidden_states_llama3" in keys:  # layers come first
        one = one | {"encoder_hidden_states_llama3": one["encoder_hidden_states_llama3"].transpose(0, 1)}
    if len(one[keys[0]]) == 2:
        return {key: one[key] for key in keys}, {key: two[key] for key in keys}
    halves = [{key: one[key].chunk(2)[half] for key in keys} for half in (0, 1)]
    prompt_first = {"context_latents", "prompt_first", "encoder_mask"} & one.keys()  # of ACE-Step, Z-Image, Lumina-Next
    first, second = halves if prompt_first else reversed(halves)
    return first, second


def as_received(cond, stock) -> dict[str, Tensor]:
    """A condition in the form of the stock pipeline's `stock`: cut to its length, and zero where its mask is."""
    found = {
        key: cond[key] if key == "context_latents" or value.ndim == 1 else cond[key][:, : value.shape[1]]
        for key, value in stock.items()
    }
    if "encoder_mask" in stock:  # Lumina-Next pads on the left, and computes embeddings of padding
        for inputs in (found, stock):
            inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"] * inputs["encoder_mask"][..., None]
    if (mask := stock.get("encoder_attention_mask_1")) is not None:
        stock["encoder_hidden_states_1"] = stock["encoder_hidden_states_1"] * mask[..., None]
    return found
