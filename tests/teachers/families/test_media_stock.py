"""Teachers of clips and sounds against their stock pipelines: condition, schedule, guidance, latents, precision."""

import pytest
import torch
from diffusers.pipelines.ace_step import pipeline_ace_step

from distill.config.registry import TEACHERS, find
from eval.pipelines.networks import set_guidance
from teachers.core.cosine_path import Cosine
from teachers.core.trigflow import expand, rotate
from tests.teachers.families.media import KINDS, NAMES, as_received, conditions, inputs_of, load_stock, prompts_of, run
from tests.teachers.families.stock import change_ignored_entries, difference

CPU = torch.device("cpu")
QUICK = ("Wan 2.1", "CogVideoX 2B")  # a flow and a variance-preserving schedule
every_family = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.sampled
@pytest.mark.slow
def test_every_step_of_the_stock_solver_is_that_of_the_teacher(name, load_media, tiny_media, record, monkeypatch):
    """Condition, schedule and guidance equal those of the stock pipeline."""
    teacher, folder = load_media(name), tiny_media(name)[1]
    momenta = []

    def no_buffer(momentum):
        momenta.append(momentum)

    monkeypatch.setattr(pipeline_ace_step, "MomentumBuffer", no_buffer)
    pipe = load_stock(teacher, folder)
    cond, path = teacher.condition(prompts_of(teacher)), teacher.denoiser.path
    for guidance, count in ((1.0, 2), (3.0, 4)):
        set_guidance(pipe, guidance)
        steps, worst = run(pipe, teacher, teacher.usual_call(count, guidance)), 0.0
        for i, (native, after) in enumerate(zip(steps.samples, steps.outputs, strict=True)):
            t, s = (torch.full((2,), angle, dtype=torch.float64) for angle in steps.angles[i : i + 2])
            x = native / expand(path.scale(t).float(), native)
            with torch.no_grad():
                v = teacher.velocity(x, t, cond, guidance)
            ours = rotate(x, v, t, s) * expand(path.scale(s).float(), native)
            if isinstance(path, Cosine):  # its solver is stochastic: the prediction of clean data is compared
                worst = max(worst, difference(rotate(x, v, t, 0 * t), steps.x0[i]))
            else:
                worst = max(worst, difference(ours, after))
        record(name, "wrap" if guidance == 1 else "guidance", worst)
        assert worst < (1e-4 if name == "Kandinsky 5" else 1e-5)  # its network rounds its queries and keys to bfloat16
        # the one thing that is left out
        assert momenta == ([-0.75] if name == "ACE-Step" and guidance > 1 else [])


@pytest.mark.slow
def test_guidance_of_ace_step_is_the_pipeline_s_in_its_first_step(load_media, tiny_media):
    """There the momentum of its guidance is zero; afterwards it depends on earlier steps."""
    teacher, folder = load_media("ACE-Step"), tiny_media("ACE-Step")[1]
    steps = run(load_stock(teacher, folder), teacher, teacher.usual_call(4, 5.0))
    cond, path = teacher.condition(prompts_of(teacher)), teacher.denoiser.path
    t, s = (torch.full((2,), angle, dtype=torch.float64) for angle in steps.angles[:2])
    x = steps.samples[0] / expand(path.scale(t).float(), steps.samples[0])
    with torch.no_grad():
        guided, scales = (teacher.velocity(x, t, cond, scale) for scale in (5.0, torch.tensor([5.0, 5.0])))
        plain = teacher.velocity(x, t, cond)
    ours = rotate(x, guided, t, s) * expand(path.scale(s).float(), x)
    assert difference(ours, steps.outputs[0]) < 1e-5 and torch.equal(guided, scales)
    assert difference(plain, guided) > 1e-2


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_condition_is_that_of_the_stock_pipeline(name, load_media, tiny_media, record):
    teacher, folder = load_media(name), tiny_media(name)[1]
    inputs = run(load_stock(teacher, folder, 3.0), teacher, teacher.usual_call(2, 3.0))
    cond = teacher.condition(prompts_of(teacher))
    with_prompt, without = conditions(inputs, teacher, cond)
    pairs = [(cond, with_prompt)]
    if not teacher.embeds_guidance and name != "ACE-Step turbo":  # their network is called once a step
        pairs.append((teacher.null_condition(cond), without))
    worst = 0.0
    for ours, stock in pairs:
        for key, value in as_received(ours, stock).items():
            worst = max(worst, (value.float() - stock[key].float()).abs().max().item())
    record(name, "condition", worst)
    assert worst < 1e-5
    scale = (
        {"guidance"} if name.startswith(("HunyuanVideo", "Flux.2 dev")) else set()
    )  # also where the network has no input for it
    made = scale | {"num_frames", "height", "width", "rope_interpolation_scale", "rotary_embedding", "image_rotary_emb"}
    made |= {"image_embeds", "timestep_r", "img_shapes", "img_ids", "txt_ids", "prompt_first"}
    made |= {"attention_kwargs", "joint_attention_kwargs", "timesteps", "img_mask", "kv_cache", "kv_cache_mode"}
    made |= {"visual_rope_pos", "text_rope_pos", "scale_factor", "position_ids", "cross_attention_kwargs"}
    common = {"args", "hidden_states", "timestep", "return_dict"} | made
    own = {"null_hidden_states"} | (
        {"encoder_attention_mask"} if name.startswith(("ACE-Step", "Kandinsky 5", "CogView4")) else set()
    )
    assert {key for key, value in inputs.inputs[0].items() if value is not None} - common == set(cond) - own


@pytest.mark.parametrize("name", ["AudioLDM 2", "ACE-Step", "CogView4", "NucleusMoE-Image", "Kandinsky 3"])
@pytest.mark.sampled
@pytest.mark.slow
def test_a_prompt_is_encoded_as_if_it_were_alone(name, load_media):
    """Stock pipelines of these families pad a batch to its longest prompt, which changes the others."""
    teacher = load_media(name)
    prompts = ["a coat", "a photo of an ankle boot"]
    cond, alone = teacher.condition(prompts), [teacher.condition([prompt]) for prompt in prompts]
    x, t = torch.randn(2, *teacher.shape), torch.tensor([0.5, 1.2])
    for key, value in cond.items():
        assert torch.equal(value, torch.cat([row[key] for row in alone]))
    with torch.no_grad():
        for scale in (1.0, 3.0):
            both = teacher.velocity(x, t, cond, scale)
            rows = [teacher.velocity(x[i : i + 1], t[i : i + 1], alone[i], scale) for i in (0, 1)]
            assert difference(both, torch.cat(rows)) < 1e-5


@every_family
@pytest.mark.sampled
@pytest.mark.slow
def test_decode_of_encode_equals_the_autoencoder(name, load_media):
    teacher = load_media(name)
    vae, medium = teacher.stock_autoencoder, teacher.medium
    media = torch.rand(2, *medium.shape) * 2 - 1
    with torch.no_grad():
        latents = teacher.encode(media)
        assert latents.shape == (2, *teacher.shape)
        if medium.name == "audio":  # padded to all latents, and cut again
            media = torch.nn.functional.pad(media, (0, teacher.shape[1] * teacher.factor - medium.shape[1]))
        if medium.name == "video" and teacher.network == "unet":  # an autoencoder of images
            media = media.transpose(1, 2).flatten(0, 1)
        if name == "Kandinsky 3":  # without a distribution of latents
            expected = vae.decode(vae.encode(media).latents, force_not_quantize=True).sample
            assert difference(teacher.decode(latents), expected) < 1e-4
            return
        if name.startswith("AudioLDM"):  # a vocoder decodes its spectrograms
            assert teacher.decode(latents).shape == (2, *medium.shape)
            return
        if "latents_mean" in teacher.statistics and medium.name == "image":  # of clips, Qwen-Image 2.1's with alpha
            media = torch.cat([media, torch.ones_like(media[:, :1])], dim=1)[:, : vae.config.get("in_channels", 3)]
            mean = vae.encode(media[:, :, None]).latent_dist.mean
            assert difference(teacher.decode(latents), vae.decode(mean).sample[:, :3, 0]) < 1e-4
            return
        mean = vae.encode(media).latent_dist.mean
        time = (torch.zeros(2),) if name == "LTX 0.9.1" else ()
        expected = vae.decode(mean, *time).sample[..., : medium.shape[-1]]
        if teacher.network == "unet":
            expected = expected.unflatten(0, (2, -1)).transpose(1, 2)
        if name.startswith("ACE-Step"):  # its pipeline scales all sounds to -1 dB
            expected = expected * (10 ** (-1 / 20) / expected.abs().amax((1, 2), keepdim=True))
        assert difference(teacher.decode(latents), expected) < 1e-4


@pytest.mark.slow
@every_family
@pytest.mark.sampled
def test_decoded_samples_equal_those_of_the_stock_pipeline(name, load_media, tiny_media):
    """Also if the autoencoder's config has entries that the pipeline ignores."""
    teacher, folder = load_media(name), tiny_media(name)[1]
    pipe = load_stock(teacher, folder)
    change_ignored_entries(teacher, teacher.stock_autoencoder, pipe.components[teacher.autoencoder])
    call = teacher.usual_call(2, 1.0) | inputs_of(pipe, teacher)  # LTX's shift_terminal needs two steps
    latents = run(pipe, teacher, teacher.usual_call(2, 1.0)).outputs[-1]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    output = pipe(**call, output_type=teacher.output_type, generator=generator)
    samples = teacher.medium.received(output)
    with torch.no_grad():
        expected = teacher.medium.judged(teacher.decode(latents))
    assert samples.shape == expected.shape == (2, *teacher.medium.shape)
    assert (samples - expected).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.sampled
def test_bfloat16_teachers_return_nearly_equal_velocities_in_float32(name, tiny_media, load_media):
    family, folder, size = tiny_media(name)
    half, full = find(TEACHERS, family).load(str(folder), CPU, torch.bfloat16, size=size), load_media(name)
    x, t, cond = torch.randn(2, *full.shape), torch.tensor([0.5, 1.0]), full.condition(prompts_of(full))
    with torch.no_grad():
        actual, expected = (teacher.velocity(x, t, cond, 2.0) for teacher in (half, full))
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().mean() < 0.1 * expected.abs().mean()
