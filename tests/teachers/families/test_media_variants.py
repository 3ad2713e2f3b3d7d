"""Pipelines with other options than the published ones: wrapped as their stock pipeline, or refused in one sentence."""

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
    CogView3PlusTransformer2DModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoTransformer3DModel,
    LCMScheduler,
    SanaTransformer2DModel,
    UNetMotionModel,
    WanTransformer3DModel,
)
from transformers import VitsConfig, VitsModel

from distill.config.registry import TEACHERS, find
from distill.exporting.recording import recorded_steps
from eval.pipelines.solvers import use_modern_solver
from teachers.core.schedule import is_edm
from teachers.core.trigflow import expand, rotate
from teachers.loading.sketch import sketch
from teachers.loading.trial import check_teacher
from tests.teachers import tiny_media as media
from tests.teachers.families.media import load_stock, prompts_of, run
from tests.teachers.families.stock import PIXELS, difference
from tests.teachers.tiny_flow_transformers import cogview4
from tests.teachers.tiny_hunyuan import hunyuan_video_15
from tests.teachers.tiny_pipelines import BUILDERS as IMAGES
from tests.teachers.tiny_pipelines import autoencoder, hunyuan_dit, sana
from tests.teachers.tiny_sounds import ace_step, audioldm2

CPU = torch.device("cpu")
WAN, CLIP = media.CLIP | {"max_sequence_length": media.LENGTH}, media.CLIP
SMALL = {"height": 32, "width": 32, "frames": 5}


def with_network(pipe, kind, **changes):
    """The pipeline with another network: its config with some changes."""
    name = "unet" if "unet" in pipe.components else "transformer"
    config = {key: value for key, value in pipe.components[name].config.items() if not key.startswith("_")}
    pipe.register_modules(**{name: kind(**(config | changes))})
    return pipe


def with_part(pipe, **parts):
    pipe.register_modules(**parts)
    return pipe


def image_tokens(tokenizer):
    """Wan 2.1's network with an image encoder, in the pipeline that passes no image."""
    return with_network(media.wan(), WanTransformer3DModel, image_dim=16, added_kv_proj_dim=24)


def motion(tokenizer, **changes):
    return with_network(media.animatediff(tokenizer), UNetMotionModel, **changes)


def vits():
    return VitsModel(VitsConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, vocab_size=8))


def schedule(build, scheduler):
    return lambda _: with_part(build(), scheduler=scheduler)


XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}
SIZED = "do not fit together: its {} cannot be evaluated"
# name: (family, function of a tokenizer that builds the pipeline, size, message)
REFUSED = {
    "Wan I2V": (
        "wan",
        lambda _: with_network(media.wan(), WanTransformer3DModel, in_channels=36),
        WAN,
        "in_channels of the transformer must be 16 .* got 36; a .*Pipeline passes no mask or source image",
    ),
    "Wan, DDIM": ("wan", schedule(media.wan, DDIMScheduler()), WAN, "schedules must be a rectified flow"),
    "Wan, one of two experts": (
        "wan",
        lambda _: with_part(media.wan(experts=True), transformer=None),
        WAN,
        "must have two transformers if it has a boundary_ratio",
    ),
    "CogVideoX 1.5 I2V": (
        "cogvideox",
        lambda _: media.cogvideox(ofs_embed_dim=8, **media.ROTARY),
        None,
        SIZED.format("transformer"),
    ),
    "CogVideoX I2V": (
        "cogvideox",
        lambda _: with_network(media.cogvideox(), CogVideoXTransformer3DModel, in_channels=8),
        None,
        "in_channels of the transformer must be 4 .* got 8",
    ),
    "CogView3-Plus, a rectified flow": (
        "cogview3_plus",
        schedule(media.cogview3_plus, FlowMatchEulerDiscreteScheduler()),
        None,
        "schedules must be variance preserving",
    ),
    "CogView3-Plus, channels": (
        "cogview3_plus",
        lambda _: with_network(media.cogview3_plus(), CogView3PlusTransformer2DModel, in_channels=8),
        None,
        "in_channels of the transformer must be 4 .* got 8",
    ),
    "CogView3-Plus, learned variance": (
        "cogview3_plus",
        lambda _: with_network(media.cogview3_plus(), CogView3PlusTransformer2DModel, out_channels=8),
        None,
        "out_channels of the transformer must be 4, without a learned variance, got 8",
    ),
    "CogView3-Plus, patches": (
        "cogview3_plus",
        lambda _: media.cogview3_plus(patch_size=4),
        None,
        "patch_size of the transformer of CogView3PlusPipeline must be 2, got 4",
    ),
    "CogView3-Plus, too wide": (
        "cogview3_plus",
        lambda _: media.cogview3_plus(),
        {"width": 72},
        "teacher.size.width must be at most 64, for which .* got 72",
    ),
    "Kandinsky 3, a rectified flow": (
        "kandinsky3",
        schedule(media.kandinsky3, FlowMatchEulerDiscreteScheduler()),
        None,
        "schedules must be variance preserving",
    ),
    "Kandinsky 3, channels": (
        "kandinsky3",
        lambda _: media.kandinsky3(in_channels=8),
        None,
        "in_channels of the unet must be 4 for the 4 latent channels of the movq, got 8",
    ),
    "Kandinsky 3, other latents": (
        "kandinsky3",
        lambda _: with_part(media.kandinsky3(in_channels=3), movq=media.movq(vq_embed_dim=3)),
        None,
        "in_channels of the unet of a Kandinsky3Pipeline must be 4, got 3",
    ),
    "Kandinsky 3, another autoencoder": (
        "kandinsky3",
        lambda _: with_part(media.kandinsky3(), movq=media.movq(levels=2)),
        None,
        "the movq of a Kandinsky3Pipeline must have 8 pixels for each latent pixel, got 2",
    ),
    "Kandinsky 3, rounded": (
        "kandinsky3",
        lambda _: media.kandinsky3(),
        {"height": 64, "width": 72},
        "teacher.size.width must be a multiple of 64, got 72",
    ),
    "Kandinsky 3, another T5": (
        "kandinsky3",
        lambda _: media.kandinsky3(encoder_hid_dim=48),
        {"height": 64, "width": 64},
        "encoder_hid_dim of .* must be the width of the embeddings of text_encoder, 32, got 48",
    ),
    "HunyuanVideo I2V": (
        "hunyuan_video",
        lambda tokenizer: with_network(
            media.hunyuan_video(tokenizer), HunyuanVideoTransformer3DModel, image_condition_type="token_replace"
        ),
        CLIP,
        "image_condition_type of the transformer must be None, got 'token_replace'",
    ),
    "HunyuanVideo 1.5, another guider": (
        "hunyuan_video_15",
        lambda _: with_part(hunyuan_video_15(), guider=AdaptiveProjectedGuidance(3.0)),
        SMALL,
        "the guider must be a ClassifierFreeGuidance, got AdaptiveProjectedGuidance",
    ),
    "HunyuanVideo 1.5, rescaled": (
        "hunyuan_video_15",
        lambda _: with_part(hunyuan_video_15(), guider=ClassifierFreeGuidance(3.0, guidance_rescale=0.7)),
        SMALL,
        "guidance_rescale of the guider must be 0.0, got 0.7",
    ),
    "HunyuanVideo 1.5, some steps": (
        "hunyuan_video_15",
        lambda _: with_part(hunyuan_video_15(), guider=ClassifierFreeGuidance(3.0, start=0.1)),
        SMALL,
        "start of the guider must be 0.0, got 0.1",
    ),
    "HunyuanVideo 1.5, mean flow": (
        "hunyuan_video_15",
        lambda _: hunyuan_video_15(use_meanflow=True),
        SMALL,
        "use_meanflow of the transformer must be False",
    ),
    "PIA": ("animatediff", lambda tokenizer: motion(tokenizer, in_channels=9), CLIP, "in_channels .* must be 4"),
    "AnimateDiff, LCM": (
        "animatediff",
        lambda tokenizer: motion(tokenizer, time_cond_proj_dim=8),
        CLIP,
        "time_cond_proj_dim of the unet must be None",
    ),
    "AnimateDiff XL": (
        "animatediff",
        lambda tokenizer: motion(tokenizer, **XL),
        CLIP,
        "addition_embed_type of the unet must be None for an AnimateDiffPipeline, got 'text_time'",
    ),
    "AnimateDiff, too long": (
        "animatediff",
        media.animatediff,
        {"height": 16, "width": 16, "frames": 33},
        SIZED.format("unet"),
    ),
    "Stable Audio Open Small": (
        "stable_audio",
        schedule(media.stable_audio, FlowMatchEulerDiscreteScheduler()),
        None,
        "schedules must be that of CosineDPMSolverMultistepScheduler",
    ),
    "AudioLDM 2, speech": (
        "audioldm2",
        lambda _: with_part(audioldm2(), text_encoder_2=vits()),
        None,
        "text_encoder_2 of an AudioLDM2Pipeline must be a T5EncoderModel, got VitsModel",
    ),
    "AudioLDM 2, classes": (
        "audioldm2",
        lambda _: audioldm2(class_embed_type="simple_projection", projection_class_embeddings_input_dim=32),
        None,
        "class_embed_type of the unet must be None",
    ),
    "AudioLDM 2, two sides": ("audioldm2", lambda _: audioldm2(sample_size=(8, 4)), None, "must be a number"),
    "AudioLDM 2, too short": ("audioldm2", lambda _: audioldm2(), {"seconds": 0.01}, "must be at least 0.04, got 0.01"),
    "ACE-Step, shifted twice": (
        "ace_step",
        schedule(ace_step, FlowMatchEulerDiscreteScheduler(1, shift=3.0)),
        {"seconds": 0.25},
        "shift of the scheduler of an AceStepPipeline must be 1.0, got 3.0",
    ),
    "ACE-Step, timesteps": (
        "ace_step",
        schedule(ace_step, FlowMatchEulerDiscreteScheduler()),
        {"seconds": 0.25},
        "num_train_timesteps of the scheduler of an AceStepPipeline must be 1, got 1000",
    ),
    "ACE-Step, channels": (
        "ace_step",
        lambda _: ace_step(in_channels=16),
        {"seconds": 0.25},
        "audio_acoustic_hidden_dim and in_channels of the transformer must be 4 and 12",
    ),
    "Hunyuan-DiT without a variance": (
        "hunyuan_dit",
        lambda tokenizer: hunyuan_dit(tokenizer, learn_sigma=False),
        None,
        "learn_sigma of the transformer must be True for a HunyuanDiTPipeline, got False",
    ),
    "Hunyuan-DiT, another autoencoder": (
        "hunyuan_dit",
        lambda tokenizer: with_part(hunyuan_dit(tokenizer), vae=autoencoder()),
        None,
        "the vae of a HunyuanDiTPipeline must have 8 pixels for each latent pixel, got 2",
    ),
    "Hunyuan-DiT, odd": (
        "hunyuan_dit",
        lambda tokenizer: hunyuan_dit(tokenizer, sample_size=9),
        None,
        "sample_size of the transformer of a HunyuanDiTPipeline must be a multiple of 2, got 9",
    ),
    "Hunyuan-DiT, another mT5": (
        "hunyuan_dit",
        lambda tokenizer: hunyuan_dit(tokenizer, cross_attention_dim_t5=48),
        None,
        "cross_attention_dim_t5 of .* must be the width of the embeddings of text_encoder_2, 32, got 48",
    ),
    "Hunyuan-DiT, other prompts": (
        "hunyuan_dit",
        lambda tokenizer: hunyuan_dit(tokenizer, text_len_t5=128),
        None,
        SIZED.format("transformer"),
    ),
    "Sana with guidance": (
        "sana",
        lambda tokenizer: with_network(sana(tokenizer), SanaTransformer2DModel, guidance_embeds=True),
        None,
        SIZED.format("transformer"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_variants_that_cannot_be_distilled_are_refused_in_one_sentence(name, tokenizer, tmp_path):
    family, build, size, message = REFUSED[name]
    torch.manual_seed(0)
    pipe, cls = build(tokenizer), find(TEACHERS, family)
    with pytest.raises(ValueError, match=message) as error:
        if "do not fit" in message or "width" in message:  # found by the files and one evaluation on the meta device
            pipe.save_pretrained(tmp_path)
            check_teacher(str(tmp_path), cls, size)
        else:
            cls.wrap(pipe, size=size)
    assert "\n" not in str(error.value)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
FOLLOWED = {
    "Wan, Euler": ("wan", schedule(media.wan, FlowMatchEulerDiscreteScheduler(shift=8.0)), WAN),
    "Wan with image tokens": ("wan", image_tokens, WAN),
    "LTX, one shift": (
        "ltx",
        schedule(media.ltx, FlowMatchEulerDiscreteScheduler(shift=3.0)),
        {"height": 32, "width": 32, "frames": 9},
    ),
    "CogVideoX, DPM": (
        "cogvideox",
        schedule(
            media.cogvideox,
            CogVideoXDPMScheduler(
                **BETAS, beta_schedule="scaled_linear", snr_shift_scale=1.0, prediction_type="v_prediction"
            ),
        ),
        None,
    ),
    "CogView3-Plus, DPM": (
        "cogview3_plus",
        schedule(
            media.cogview3_plus,
            CogVideoXDPMScheduler(
                **BETAS, beta_schedule="scaled_linear", snr_shift_scale=4.0, prediction_type="v_prediction"
            ),
        ),
        None,
    ),
    "CogView4, one shift": (
        "cogview4",
        schedule(cogview4, FlowMatchEulerDiscreteScheduler(shift=3.0)),
        {"height": 16, "width": 16},
    ),
    "CogView4, exponential shift": (
        "cogview4",
        schedule(cogview4, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=16)),
        {"height": 16, "width": 48},
    ),
    "CogVideoX, learned positions": (
        "cogvideox",
        lambda _: media.cogvideox(use_learned_positional_embeddings=True, **media.ROTARY),
        None,
    ),
    "AnimateDiff, Euler": (
        "animatediff",
        lambda tokenizer: with_part(
            media.animatediff(tokenizer), scheduler=EulerDiscreteScheduler(**BETAS, beta_schedule="linear")
        ),
        {"height": 16, "width": 32, "frames": 2},
    ),
    "AnimateLCM": (
        "animatediff",
        lambda tokenizer: with_part(
            media.animatediff(tokenizer), scheduler=LCMScheduler(**BETAS, beta_schedule="linear")
        ),
        {"height": 16, "width": 16, "frames": 2},
    ),
    "AudioLDM 2, long": ("audioldm2", lambda _: audioldm2(), {"seconds": 0.41}),
    "ACE-Step, odd": ("ace_step", lambda _: ace_step(patch_size=3), {"seconds": 0.2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.sampled
def test_variants_that_are_taken_follow_their_stock_pipeline(name, tokenizer, tmp_path):
    """The network's x0 at each step of the stock pipeline, by a solver with the pipeline's own table."""
    family, build, size = FOLLOWED[name]
    torch.manual_seed(0)
    build(tokenizer).save_pretrained(tmp_path)
    teacher = find(TEACHERS, family).load(str(tmp_path), CPU, size=size)
    pipe = load_stock(teacher, tmp_path)
    if teacher.network == "unet" or family in ("cogvideox", "cogview3_plus"):
        table = pipe.scheduler.alphas_cumprod
        pipe.scheduler = DDIMScheduler(prediction_type=teacher.denoiser.prediction, clip_sample=False)
        pipe.scheduler.alphas_cumprod = table
    steps = run(pipe, teacher, teacher.usual_call(2, 1.0))
    cond, path = teacher.condition(prompts_of(teacher)), teacher.denoiser.path
    for i, (native, after) in enumerate(zip(steps.samples, steps.outputs, strict=True)):
        t, s = (torch.full((2,), angle, dtype=torch.float64) for angle in steps.angles[i : i + 2])
        x = native / expand(path.scale(t).float(), native)
        with torch.no_grad():
            ours = rotate(x, teacher.velocity(x, t, cond), t, s) * expand(path.scale(s).float(), native)
        assert difference(ours, after) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("negative", [None, "a", "a blurry photo of a small dress"])
@pytest.mark.sampled
def test_kandinsky_3_guides_each_prompt_of_a_batch_as_its_pipeline_does_alone(negative, tiny_media):
    """The pipeline cuts a negative prompt, and zeros without one, at the length of the prompt."""
    family, folder, size = tiny_media("Kandinsky 3")
    teacher = find(TEACHERS, family).load(str(folder), CPU, size=size)
    pipe = load_stock(teacher, folder)
    if negative is not None:
        teacher.set_negative_prompt(negative)
    prompts = ["a coat", "a photo of an ankle boot"]
    cond, path = teacher.condition(prompts), teacher.denoiser.path
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    for row, prompt in enumerate(prompts):
        call = teacher.usual_call(2, 3.0) | {"latents": x[row : row + 1], "output_type": "latent"}
        with recorded_steps(pipe.scheduler) as outputs:
            pipe(prompt, **call)
        t, s = (path.angle(torch.full((2,), float(time))) for time in pipe.scheduler.timesteps)
        with torch.no_grad():
            v = teacher.velocity(x / expand(path.scale(t), x), t, cond, 3.0)
        after = rotate(x / expand(path.scale(t), x), v, t, s) * expand(path.scale(s), x)
        assert difference(after[row].float(), outputs[0][0]) < 1e-5
    lengths = (cond["encoder_attention_mask"] >= 0).sum(1).tolist()
    null = teacher.null_condition(cond)["encoder_attention_mask"]
    assert lengths[0] < lengths[1] and (null >= 0).sum(1).tolist() == lengths


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_guidance_scales_that_the_pipeline_of_kandinsky_3_does_not_apply_are_refused(scale):
    family = find(TEACHERS, "kandinsky3")
    with pytest.raises(ValueError, match=f"must be 1 or above 2 for .* kandinsky3, got {scale:g}: its"):
        family.check_guidance(scale)
    for taken in (1.0, 2.5):
        family.check_guidance(taken)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in IMAGES if name not in PIXELS), *media.BUILDERS])
@pytest.mark.sampled
def test_only_unshifted_variance_preserving_teachers_get_the_modern_solver(name, tiny, tiny_media):
    """In the few-step rows of a report; flows, shifted signal-to-noise ratios and Stable Audio keep their solvers."""
    family, folder, size = tiny_media(name) if name in media.BUILDERS else (*tiny(name), None)
    teacher = sketch(str(folder), find(TEACHERS, family), size)
    pipe, old = teacher.stock, teacher.stock.scheduler
    found = use_modern_solver(pipe)
    modern = ("stable_diffusion", "stable_diffusion_xl", "pixart", "hunyuan_dit", "dit", "animatediff", "audioldm2")
    modern += ("kandinsky3",)
    keeps = family not in modern
    assert (found is None) == (pipe.scheduler is old) == keeps
    if not keeps and not is_edm(old):
        torch.testing.assert_close(pipe.scheduler.alphas_cumprod, old.alphas_cumprod, rtol=1e-4, atol=1e-7)
