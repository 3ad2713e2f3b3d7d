"""What image families with a size of the call have of their own: latents, sizes, guidance in calls, refusals."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from distill.config.registry import TEACHERS, find
from teachers.core.sampling import sample
from teachers.loading.sketch import sketch
from tests.teachers.families.media import prompts_of, run
from tests.teachers.families.stock import difference
from tests.teachers.tiny_flows import BUILDERS

NAMES = list(BUILDERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Flux.2 dev", "Flux.2 klein"])
def test_latents_of_flux_2_are_those_of_the_stock_pipeline(name, load_media, tiny_media):
    """Patches of the autoencoder's latents, normalised by the statistics of its batch normalisation."""
    teacher, pipe = load_media(name), DiffusionPipeline.from_pretrained(tiny_media(name)[1])
    images = torch.rand(2, *teacher.medium.shape) * 2 - 1
    with torch.no_grad():
        assert difference(teacher.encode(images), pipe._encode_vae_image(images, None)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Flux.2 dev", "Qwen-Image", "LongCat-Image"])
@pytest.mark.sampled
def test_noise_levels_are_those_of_the_stock_pipeline_at_its_default_number_of_steps(name, load_media, tiny_media):
    """The shift of Flux.2 depends on the number of steps."""
    teacher, pipe = load_media(name), DiffusionPipeline.from_pretrained(tiny_media(name)[1])
    pipe.set_progress_bar_config(disable=True)
    run(pipe, teacher, teacher.usual_call(50, 1.0))
    path = teacher.denoiser.path
    first, last, steps = 1.0, path.terminal or 0.0, torch.linspace(1.0, 1 / 50, 50)
    levels = path.shift * steps / (1 + (path.shift - 1) * steps)
    if path.terminal:
        levels = first - (first - levels) * (1 - last) / (1 - levels[-1])
    torch.testing.assert_close(pipe.scheduler.sigmas[:-1], levels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled
@pytest.mark.slow
def test_the_default_size_is_the_pipeline_s_and_is_not_in_the_call(name, tiny_media, load_media):
    family, folder, size = tiny_media(name)
    teacher = sketch(str(folder), find(TEACHERS, family))
    side = {"HiDream-I1": 128, "Qwen-Image 2.1": 1024, "Kandinsky 5": 1024}.get(name, 256)
    assert (
        teacher.image_size == (side, side) and teacher.medium.name == "image" and not set(size) & set(teacher.calls(1))
    )
    assert load_media(name).image_size == (size["height"], size["width"])
    assert {key: load_media(name).calls(1)[key] for key in size} == size


@pytest.mark.parametrize(("key", "value", "match"), [
    ("height", 18, r"teacher.size.height must be a multiple of 4, got 18"),
    ("width", 16.5, r"teacher.size.width must be a whole number, got 16.5"),
    ("frames", 9, r"teacher.size must have the keys height, width .* got 'frames'"),
])  # fmt: skip
@pytest.mark.slow
def test_impossible_sizes_are_refused(key, value, match, tiny_media):
    for name in ("Qwen-Image", "Flux.2 dev"):
        family, folder, size = tiny_media(name)
        with pytest.raises(ValueError, match=match):
            sketch(str(folder), find(TEACHERS, family), size | {key: value})


@pytest.mark.parametrize("key", ["guidance_embeds", "use_additional_t_cond"])
@pytest.mark.first_is_quick
def test_qwen_image_networks_with_further_inputs_are_refused(key, tiny_media):
    pipe = DiffusionPipeline.from_pretrained(tiny_media("Qwen-Image")[1])
    pipe.transformer.register_to_config(**{key: True})
    with pytest.raises(ValueError, match=f"{key} of the transformer must be False, got True"):
        find(TEACHERS, "qwen_image").wrap(pipe)


@pytest.mark.slow
def test_prompts_of_qwen_image_21_have_at_most_512_tokens(load_media):
    with pytest.raises(ValueError, match=r"a prompt must have at most 512 tokens, got 6..: 'zzz"):
        load_media("Qwen-Image 2.1").condition(["z" * 600])


def test_a_schedule_in_the_files_of_qwen_image_21_does_not_replace_the_number_of_steps(tiny_media):
    _, folder, size = tiny_media("Qwen-Image 2.1")
    pipe = DiffusionPipeline.from_pretrained(folder, sample_sigmas=[1.0, 0.7, 0.4])
    pipe.set_progress_bar_config(disable=True)
    teacher = find(TEACHERS, "qwen_image_21").wrap(pipe, size=size)
    assert len(run(pipe, teacher, teacher.usual_call(2, 1.0)).outputs) == 2
    assert teacher.pipeline(teacher.student(), [teacher.denoiser.path.t_max]).config.sample_sigmas is None


def test_sizes_that_kandinsky_5_does_not_have_are_refused(tiny_media):
    with pytest.raises(ValueError, match=r"teacher.size must be one of 1024 x 1024, 1408 x 640, .*, got 512 x 512"):
        sketch(str(tiny_media("Kandinsky 5")[1]), find(TEACHERS, "kandinsky5"), {"height": 512, "width": 512})


def test_sizes_that_hidream_changes_are_refused(tiny_media):
    message = r"must be a size that HiDreamImagePipeline keeps, got 64 x 128, which it changes to 90 x 180"
    with pytest.raises(ValueError, match=message):
        sketch(str(tiny_media("HiDream-I1")[1]), find(TEACHERS, "hidream"), {"height": 64, "width": 128})


@pytest.mark.slow
@pytest.mark.parametrize("size", [{"height": 64, "width": 256}, {}])
def test_experts_of_hidream_have_gradients_and_compute_what_the_stock_network_does(size, tiny_media):
    """The network's own mixtures of experts compute without gradients in eval mode."""
    folder = tiny_media("HiDream-I1")[1]
    stock = DiffusionPipeline.from_pretrained(folder).transformer.eval()
    teacher = find(TEACHERS, "hidream").load(str(folder), torch.device("cpu"), size=size)
    student, cond = teacher.student(), teacher.condition(["a coat", "a boot"])
    x, t = torch.randn(2, *teacher.shape), torch.tensor([200.0, 700.0])
    found = student.call(student.network, x, t, cond)
    with torch.no_grad():
        assert difference(found, student.call(stock, x, t, cond)) < 1e-5
    found.square().mean().backward()
    experts = [p for name, p in student.network.named_parameters() if ".experts." in name]
    assert len(experts) == 3 * 4 * 3 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in experts)


@pytest.mark.slow
def test_a_negative_prompt_is_refused_for_flux_2(load_media):
    with pytest.raises(ValueError, match="must be null: pipelines of the family Flux2 take no negative prompt"):
        load_media("Flux.2 klein").set_negative_prompt("noise")


@pytest.mark.slow
def test_a_distilled_klein_ignores_the_guidance_scale(tiny_media):
    pipe = DiffusionPipeline.from_pretrained(tiny_media("Flux.2 klein")[1], is_distilled=True)
    teacher = find(TEACHERS, "flux2").wrap(pipe, size=tiny_media("Flux.2 klein")[2])
    cond, x, t = teacher.condition(prompts_of(teacher)), torch.randn(2, *teacher.shape), torch.tensor([0.5, 1.0])
    with torch.no_grad():
        assert torch.equal(teacher.velocity(x, t, cond, 4.0), teacher.velocity(x, t, cond))


@pytest.mark.slow
def test_embedded_guidance_of_flux_2_follows_the_call(load_media):
    teacher = load_media("Flux.2 dev")
    student = teacher.student()
    teacher.embed_guidance(student, 2.0)
    times = [student.path.t_max]
    pipe = teacher.pipeline(student, times)
    pipe.set_progress_bar_config(disable=True)
    cond, found = teacher.condition(prompts_of(teacher)), {}
    for scale in (3.0, 4.0):
        result = run(pipe, teacher, teacher.calls(1, times) | {"guidance_scale": scale})
        scaled = {**cond, **teacher.guidance_condition(student, torch.full((2,), scale))}
        with torch.no_grad():
            expected = sample(student, result.noises[0], times, scaled, torch.randn_like)
        found[scale] = result.outputs[-1]
        assert difference(found[scale], expected) < 1e-5
    assert difference(found[3.0], found[4.0]) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
@pytest.mark.sampled
def test_digests_do_not_change_with_use(name, tiny_media):
    family, folder, size = tiny_media(name)
    teacher = find(TEACHERS, family).wrap(DiffusionPipeline.from_pretrained(folder), size=size)
    before = teacher.digest()
    noise = torch.randn(2, *teacher.shape)
    with torch.no_grad():
        teacher.velocity(noise, torch.ones(2), teacher.condition(["a coat", "a bag"]), 2.0)
        teacher.encode(teacher.decode(noise))
    assert teacher.digest() == before


@pytest.mark.slow
def test_hidream_shifts_by_the_constants_of_its_pipeline(tiny_media):
    """Whatever the scheduler's config has: the pipeline calls `calculate_shift` without it."""
    family, folder, size = tiny_media("HiDream-I1")
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.2, max_shift=3.0)
    teacher = find(TEACHERS, family).wrap(pipe, size=size)
    run(pipe, teacher, teacher.usual_call(4, 1.0))
    shift, levels = teacher.denoiser.path.shift, torch.linspace(1.0, 1 / 1000, 4)
    torch.testing.assert_close(pipe.scheduler.sigmas[:-1], shift * levels / (1 + (shift - 1) * levels))


@pytest.mark.parametrize("number", [0, 1])
def test_hidream_with_another_text_encoder_is_refused(number, tiny_media, tmp_path):
    family, folder, _ = tiny_media("HiDream-I1")
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "transformer" / "config.json"
    values = json.loads(config.read_text())
    values["caption_channels"][number] += 16
    config.write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=rf"caption_channels.{number} of .* must be the width of the embeddings of text_"
    ):
        find(TEACHERS, family).load(str(tmp_path / "model"), torch.device("cpu"))
