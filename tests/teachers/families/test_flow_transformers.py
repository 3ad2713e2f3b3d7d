"""What the families of rectified-flow transformers have of their own: sizes, guidance, tokens, refusals, memory."""

import json
import math
import shutil

import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    ZImageTransformer2DModel,
)

from distill.config.recipe import Recipe
from distill.config.registry import TEACHERS, find
from distill.config.sections import TeacherRecipe
from distill.exporting.recording import recorded_steps
from distill.methods.discriminator import features
from distill.training import memory_plan
from eval.pipelines.networks import counted
from teachers.core.trigflow import expand, rotate
from teachers.describe import guidance
from teachers.loading.sketch import sketch
from teachers.media import Image
from teachers.networks.checkpointing import checkpoint_activations
from tests.settings import first_is_quick, in_turn
from tests.teachers import tiny_flow_transformers as tiny
from tests.teachers.families.media import prompts_of, run
from tests.teachers.families.stock import difference
from tests.teachers.families.test_media_variants import with_network, with_part
from tests.teachers.tiny_pipelines import autoencoder

NAMES = list(tiny.BUILDERS)
DEFAULT = {"Z-Image": 1024, "Lumina-Image 2.0": 64, "Lumina-Next": 32, "Chroma": 256}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT)
def test_the_default_size_is_the_pipeline_s_and_is_not_in_the_call(name, tiny_media, load_media):
    family, folder, size = tiny_media(name)
    teacher = sketch(str(folder), find(TEACHERS, family))
    assert teacher.medium == Image(DEFAULT[name], DEFAULT[name]) and not set(size) & set(teacher.calls(1))
    assert {key: load_media(name).calls(1)[key] for key in size} == size


@pytest.mark.parametrize(("name", "size", "message"), [
    ("Z-Image", {"height": 18}, r"teacher.size.height must be a multiple of 4, got 18"),
    ("Lumina-Image 2.0", {"width": 40}, r"teacher.size.width must be a multiple of 16, got 40"),
    ("Lumina-Next", {"width": 6160}, r"teacher.size.width must be at most 6144, for which .* got 6160"),
    ("AuraFlow", {"height": 16, "width": 36}, r"teacher.size.width must be at most 32, for which .* got 36"),
    ("Chroma", {"width": 16.5}, r"teacher.size.width must be a whole number, got 16.5"),
])  # fmt: skip
def test_impossible_sizes_are_refused(name, size, message, tiny_media):
    family, folder, _ = tiny_media(name)
    with pytest.raises(ValueError, match=message):
        sketch(str(folder), find(TEACHERS, family), size)


def test_a_size_that_auraflow_has_no_positions_for_is_refused_by_default(tiny_media):
    family, folder, _ = tiny_media("AuraFlow")
    with pytest.raises(ValueError, match=r"teacher.size.height must be at most 32"):
        sketch(str(folder), find(TEACHERS, family))


THOUSAND = "num_train_timesteps of the scheduler of a {} must be 1000, got 500"
# name: (family, function that builds the pipeline, message)
REFUSED = {
    "Z-Image Omni": (
        "z_image",
        lambda: with_network(tiny.z_image(), ZImageTransformer2DModel, siglip_feat_dim=8),
        "siglip_feat_dim of the transformer must be None, got 8",
    ),
    "Z-Image, another time": (
        "z_image",
        lambda: with_network(tiny.z_image(), ZImageTransformer2DModel, t_scale=1.0),
        "t_scale of the transformer must be 1000, got 1.0",
    ),
    "Z-Image, 500 timesteps": (
        "z_image",
        lambda: with_part(tiny.z_image(), scheduler=FlowMatchEulerDiscreteScheduler(500)),
        THOUSAND.format("ZImagePipeline"),
    ),
    "Lumina, another autoencoder": (
        "lumina2",
        lambda: with_part(tiny.lumina2(), vae=autoencoder(shift_factor=0.1)),
        "the vae of a Lumina2Pipeline must have 8 pixels for each latent pixel, got 2",
    ),
    "Lumina, channels": (
        "lumina2",
        lambda: with_network(tiny.lumina2(), Lumina2Transformer2DModel, in_channels=8),
        "in_channels of the transformer must be 4 .* got 8",
    ),
    "Lumina-Next, another autoencoder": (
        "lumina",
        lambda: with_part(tiny.lumina(), vae=autoencoder()),
        "the vae of a LuminaPipeline must have 8 pixels for each latent pixel, got 2",
    ),
    "Lumina-Next without a variance": (
        "lumina",
        lambda: with_network(tiny.lumina(), LuminaNextDiT2DModel, learn_sigma=False),
        "learn_sigma of the transformer must be True for a LuminaPipeline, got False",
    ),
    "Lumina-Next, patches": (
        "lumina",
        lambda: with_network(tiny.lumina(), LuminaNextDiT2DModel, patch_size=4),
        "patch_size of the transformer must be 2 for a LuminaPipeline, got 4",
    ),
    "Lumina-Next, dynamic": (
        "lumina",
        lambda: with_part(tiny.lumina(), scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
        "use_dynamic_shifting of the scheduler of a LuminaPipeline must be False, got True",
    ),
    "AuraFlow, channels": (
        "auraflow",
        lambda: with_network(tiny.auraflow(), AuraFlowTransformer2DModel, in_channels=9, out_channels=4),
        "in_channels of the transformer must be 4 .* got 9; a .*Pipeline passes no mask or source image",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_variants_that_cannot_be_distilled_are_refused_in_one_sentence(name):
    family, build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        find(TEACHERS, family).wrap(build(), size={"height": 32, "width": 32})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_lumina_next_follow_the_stock_pipeline_wherever_they_are_padded(side):
    """A prompt beside a longer one, guided against a negative prompt that its pipeline cuts."""
    torch.manual_seed(0)
    pipe = tiny.lumina(side)
    pipe.set_progress_bar_config(disable=True)
    teacher = find(TEACHERS, "lumina").wrap(pipe, size={"height": 32, "width": 64})
    teacher.set_negative_prompt("a blurry photo of a dress")
    steps = []
    with recorded_steps(pipe.scheduler) as outputs:
        call = teacher.usual_call(2, 3.0) | {"negative_prompt": ["a blurry photo of a dress"] * 2}
        noise = torch.randn(2, *teacher.shape)
        pipe(["a boot", "a coat"], **call, latents=noise, output_type="latent")
        steps = [noise, *outputs]
    cond, path = teacher.condition(["a boot", "a coat"]), teacher.denoiser.path
    levels = pipe.scheduler.sigmas.double() * 1000
    for before, after, first, last in zip(steps, steps[1:], levels, levels[1:], strict=False):
        t, s = (path.angle(level.expand(2)) for level in (first, last))
        with torch.no_grad():
            v = teacher.velocity(before / expand(path.scale(t).float(), before), t, cond, 3.0)
        x = rotate(before / expand(path.scale(t).float(), before), v, t, s)
        assert difference(x * expand(path.scale(s).float(), x), after) < 1e-5
    assert teacher.null_condition(cond)["encoder_mask"].sum(1).tolist() == [8, 8]
    assert teacher.null_condition(teacher.condition(["a boot on a coat"]))["encoder_mask"].sum(1).tolist() == [24]


def test_z_image_s_guidance_scale_of_a_call_is_one_less(load_media):
    teacher = load_media("Z-Image")
    assert teacher.usual_call(4, 5.0)["guidance_scale"] == 4.0 and teacher.calls(1)["guidance_scale"] == 0.0
    assert guidance(teacher).endswith("call exported pipelines with guidance_scale=0.0")


@pytest.mark.parametrize("name", first_is_quick(NAMES))
def test_guidance_doubles_the_evaluations_and_a_student_s_call_has_none(name, load_media, tiny_media):
    teacher, pipe = load_media(name), DiffusionPipeline.from_pretrained(tiny_media(name)[1])
    pipe.set_progress_bar_config(disable=True)
    for call, expected in ((teacher.calls(2), 4), (teacher.usual_call(2, 3.0), 8)):
        with counted(pipe) as count:
            run(pipe, teacher, call)
        assert count.evaluations == expected  # of two samples in two steps


@pytest.mark.parametrize("name", ["Z-Image", "Lumina-Image 2.0", "Chroma"])
def test_dynamic_shifts_are_those_of_the_stock_pipeline(name, tiny_media):
    """The pipeline of Lumina takes the number of latent channels for that of tokens."""
    family, folder, size = tiny_media(name)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=2, max_image_seq_len=64
    )
    pipe.set_progress_bar_config(disable=True)
    teacher = find(TEACHERS, family).wrap(pipe, size=size)
    run(pipe, teacher, teacher.usual_call(4, 1.0))
    levels = [teacher.denoiser.path.angle(1000 * sigma.double()).item() for sigma in pipe.scheduler.sigmas]
    assert teacher.denoiser.path.shift != 1.0
    torch.testing.assert_close(teacher.denoiser.path.solver_times(4), levels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["Z-Image", "Lumina-Image 2.0"])
def test_features_of_a_sample_do_not_depend_on_the_other_prompts_of_a_batch(name, load_media):
    """Their blocks have the tokens of samples and prompts in one sequence, as long as the longest prompt."""
    teacher, x, t = load_media(name), torch.randn(2, *load_media(name).shape), torch.tensor([0.5, 1.0])
    found = []
    with torch.no_grad():
        for other in ("a", "a photo of a coat on a small table"):
            found.append(features(teacher.denoiser, x, t, teacher.condition(["an ankle boot", other]))[:1])
        moved = features(teacher.denoiser, x.roll(1, -1), t, teacher.condition(["an ankle boot", "a"]))[:1]
    assert difference(found[0], found[1]) < 1e-4 and difference(found[0], moved) > 1e-2


@pytest.mark.parametrize("name", first_is_quick(["Chroma", "Z-Image", "Lumina-Image 2.0", "AuraFlow"]))
def test_activation_checkpointing_does_not_change_gradients(name, load_media):
    """diffusers' Chroma omits the mask of its single blocks with it."""
    teacher, gradients = load_media(name), []
    cond, x, t = teacher.condition(prompts_of(teacher)), torch.randn(2, *teacher.shape), torch.tensor([0.5, 1.0])
    for checkpointed in (False, True):
        student = teacher.student()
        if checkpointed:
            checkpoint_activations(student.network)
        student.velocity(x, t, cond).square().mean().backward()
        gradients.append({key: p.grad for key, p in student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, msg=key)


WIDTHS = {"Z-Image": "cap_feat_dim", "Lumina-Image 2.0": "cap_feat_dim", "Lumina-Next": "cross_attention_dim"}


@pytest.mark.parametrize("name", NAMES)
def test_a_transformer_for_text_of_another_width_is_refused(name, tiny_media, tmp_path):
    family, folder, size = tiny_media(name)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file, key = tmp_path / "transformer" / "config.json", WIDTHS.get(name, "joint_attention_dim")
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: 48}))
    with pytest.raises(ValueError, match=rf"{key} .*48|48.*{key}"):
        sketch(str(tmp_path), find(TEACHERS, family), size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), in_turn(NAMES, ["dmd", "scm"]))
def test_memory_is_planned_on_the_meta_device(name, method, tiny_media):
    family, folder, size = tiny_media(name)
    recipe = Recipe("run", TeacherRecipe(str(folder), family=family, guidance=3.0, size=size), {"name": method})
    found = memory_plan.plan(recipe, 2)
    assert found.weights > 0 and found.activations > 0 and math.isfinite(found.activations)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_digests_do_not_change_with_use_and_are_those_of_another_copy(name, tiny_media):
    family, folder, size = tiny_media(name)
    teacher, again = (find(TEACHERS, family).load(str(folder), torch.device("cpu"), size=size) for _ in range(2))
    before = teacher.digest()
    cond, x = teacher.condition(prompts_of(teacher)), torch.randn(2, *teacher.shape)
    with torch.no_grad():
        teacher.velocity(x, torch.tensor([0.5, 1.0]), cond, 3.0)
    assert teacher.digest() == before == again.digest()


@pytest.mark.parametrize("name", first_is_quick(NAMES))
def test_text_encoders_are_loaded_on_demand(name, load_media, tiny_media):
    family, folder, size = tiny_media(name)
    teacher = find(TEACHERS, family).load(str(folder), torch.device("cpu"), size=size)
    assert not teacher.text_encoders_loaded
    teacher.condition(["a coat"])
    assert teacher.text_encoders_loaded
    teacher.unload_encoders()
    assert not teacher.text_encoders_loaded
