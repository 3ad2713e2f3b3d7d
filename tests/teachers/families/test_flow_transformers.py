"""What the families of rectified-flow transformers have of their own: sizes, guidance, tokens, refusals, memory."""

import json
import math
import shutil

import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    CogView4Transformer2DModel,
    DiffusionPipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    NucleusMoEImageTransformer2DModel,
    OvisImageTransformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_nucleusmoe_image import SwiGLUExperts

from distill.config.recipe import Recipe
from distill.config.registry import TEACHERS, find
from distill.config.sections import TeacherRecipe
from distill.exporting.recording import recorded_steps
from distill.methods.discriminator import features
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.training import memory_plan
from eval.pipelines.networks import count_evaluations
from teachers.core.trigflow import expand, rotate
from teachers.describe import guidance
from teachers.loading.distilled import distilled
from teachers.loading.sketch import sketch
from teachers.media import Image
from teachers.networks.checkpointing import checkpoint_activations
from tests.settings import in_turn
from tests.teachers import tiny_flow_transformers as tiny
from tests.teachers.families.media import prompts_of, run
from tests.teachers.families.stock import difference
from tests.teachers.families.test_media_variants import with_network, with_part
from tests.teachers.tiny_pipelines import autoencoder

NAMES = list(tiny.BUILDERS)
DEFAULT = {"Z-Image": 1024, "Z-Image Omni": 1024, "Lumina-Image 2.0": 64, "Lumina-Next": 32, "Chroma": 256}
DEFAULT |= {"Ovis-Image": 256, "CogView4": 16, "Krea 2": 1024, "NucleusMoE-Image": 256, "ERNIE-Image": 1024}
DYNAMIC = ["Z-Image", "Z-Image Omni", "Lumina-Image 2.0", "Chroma", "Ovis-Image", "Krea 2", "NucleusMoE-Image"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT)
@pytest.mark.sampled
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
    ("Ovis-Image", {"height": 18}, r"teacher.size.height must be a multiple of 4, got 18"),
    ("CogView4", {"width": 24}, r"teacher.size.width must be a multiple of 16, got 24"),
    ("Chroma", {"width": 16.5}, r"teacher.size.width must be a whole number, got 16.5"),
    ("ERNIE-Image", {"height": 18}, r"teacher.size.height must be a multiple of 4, got 18"),
])  # fmt: skip
@pytest.mark.first_is_quick
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
    "Z-Image Omni, another time": (
        "z_image_omni",
        lambda: with_network(tiny.z_image_omni(), ZImageTransformer2DModel, t_scale=1.0),
        "t_scale of the transformer must be 1000, got 1.0",
    ),
    "Z-Image Omni, channels": (
        "z_image_omni",
        lambda: with_network(tiny.z_image_omni(), ZImageTransformer2DModel, in_channels=8),
        "in_channels of the transformer must be 4 .* got 8",
    ),
    "Z-Image Omni, 500 timesteps": (
        "z_image_omni",
        lambda: with_part(tiny.z_image_omni(), scheduler=FlowMatchEulerDiscreteScheduler(500)),
        THOUSAND.format("ZImageOmniPipeline"),
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
        "patch_size of the transformer of LuminaPipeline must be 2, got 4",
    ),
    "Lumina-Next, dynamic": (
        "lumina",
        lambda: with_part(tiny.lumina(), scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
        "use_dynamic_shifting of the scheduler of LuminaPipeline must be False, got True: its call passes no shift",
    ),
    "AuraFlow, channels": (
        "auraflow",
        lambda: with_network(tiny.auraflow(), AuraFlowTransformer2DModel, in_channels=9, out_channels=4),
        "in_channels of the transformer must be 4 .* got 9; a .*Pipeline passes no mask or source image",
    ),
    "Ovis, channels": (
        "ovis_image",
        lambda: with_network(tiny.ovis_image(), OvisImageTransformer2DModel, in_channels=32, out_channels=16),
        "in_channels of the transformer must be 16 for the 4 latent channels of the vae, got 32",
    ),
    "Ovis, learned variance": (
        "ovis_image",
        lambda: with_network(tiny.ovis_image(), OvisImageTransformer2DModel, out_channels=32),
        "out_channels of the transformer must be 16, without a learned variance, got 32",
    ),
    "Ovis, patches": (
        "ovis_image",
        lambda: with_network(tiny.ovis_image(), OvisImageTransformer2DModel, patch_size=2),
        "patch_size of the transformer of OvisImagePipeline must be 1, got 2",
    ),
    "CogView4, another solver": (
        "cogview4",
        lambda: with_part(tiny.cogview4(), scheduler=FlowMatchHeunDiscreteScheduler()),
        "the scheduler of a CogView4Pipeline must be a FlowMatchEulerDiscreteScheduler, got FlowMatchHeun",
    ),
    "CogView4, stretched levels": (
        "cogview4",
        lambda: with_part(tiny.cogview4(), scheduler=FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)),
        "shift_terminal of the scheduler of a CogView4Pipeline must be off, got 0.1: it changes the noise levels",
    ),
    "CogView4, patches": (
        "cogview4",
        lambda: with_network(tiny.cogview4(), CogView4Transformer2DModel, patch_size=4),
        "patch_size of the transformer of CogView4Pipeline must be 2, got 4",
    ),
    "CogView4, channels": (
        "cogview4",
        lambda: with_network(tiny.cogview4(), CogView4Transformer2DModel, in_channels=8),
        "in_channels of the transformer must be 4 .* got 8",
    ),
    "CogView4, learned variance": (
        "cogview4",
        lambda: with_network(tiny.cogview4(), CogView4Transformer2DModel, out_channels=8),
        "out_channels of the transformer must be 4, without a learned variance, got 8",
    ),
    "Ovis, 500 timesteps": (
        "ovis_image",
        lambda: with_part(tiny.ovis_image(), scheduler=FlowMatchEulerDiscreteScheduler(500)),
        THOUSAND.format("OvisImagePipeline"),
    ),
    "Krea 2, patches": ("krea2", lambda: tiny.krea2(patch_size=1), "patch_size of a Krea2Pipeline must be 2, got 1"),
    "Krea 2, layers": (
        "krea2",
        lambda: tiny.krea2(text_encoder_select_layers=None),
        "num_text_layers of the transformer must be the number of text_encoder_select_layers .* 12, got 2",
    ),
    "Krea 2, 500 timesteps": (
        "krea2",
        lambda: with_part(tiny.krea2(), scheduler=FlowMatchEulerDiscreteScheduler(500)),
        THOUSAND.format("Krea2Pipeline"),
    ),
    "Nucleus, patches": (
        "nucleus_moe_image",
        lambda: tiny.nucleus_moe_image(patch_size=1),
        "patch_size of the transformer of NucleusMoEImagePipeline must be 2, got 1",
    ),
    "Nucleus, channels": (
        "nucleus_moe_image",
        lambda: with_network(tiny.nucleus_moe_image(), NucleusMoEImageTransformer2DModel, out_channels=None),
        "in_channels and out_channels of the transformer must be 16 and 4 for the 4 .*, got 16 and None",
    ),
    "ERNIE, patches": (
        "ernie_image",
        lambda: with_network(tiny.ernie_image(), ErnieImageTransformer2DModel, patch_size=2),
        "patch_size of the transformer of ErnieImagePipeline must be 1, got 2",
    ),
    "ERNIE, shift": (
        "ernie_image",
        lambda: with_part(tiny.ernie_image(), scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
        "use_dynamic_shifting of the scheduler of ErnieImagePipeline must be False, got True: its call passes no shift",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.first_is_quick
def test_variants_that_cannot_be_distilled_are_refused_in_one_sentence(name):
    family, build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        find(TEACHERS, family).wrap(build(), size={"height": 32, "width": 32})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["Z-Image", "Z-Image Omni", "Krea 2"])
@pytest.mark.slow
def test_some_guidance_scales_of_a_call_are_one_less(name, load_media):
    teacher = load_media(name)
    assert teacher.usual_call(4, 5.0)["guidance_scale"] == 4.0 and teacher.calls(1)["guidance_scale"] == 0.0
    assert guidance(teacher).endswith("call exported pipelines with guidance_scale=0.0")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled
@pytest.mark.slow
def test_guidance_doubles_the_evaluations_and_a_student_s_call_has_none(name, load_media, tiny_media):
    teacher, pipe = load_media(name), DiffusionPipeline.from_pretrained(tiny_media(name)[1])
    pipe.set_progress_bar_config(disable=True)
    for call, expected in ((teacher.calls(2), 4), (teacher.usual_call(2, 3.0), 8)):
        with count_evaluations(pipe) as count:
            run(pipe, teacher, call)
        assert count.evaluations == expected  # of two samples in two steps


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.first_is_quick
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


SCHEDULERS = {
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_image_seq_len": 8},
    "exponential": {"use_dynamic_shifting": True, "base_image_seq_len": 64},
    "one shift": {"shift": 3.0},
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.first_is_quick
def test_timesteps_of_cogview4_are_those_before_the_shift(kind):
    """The noise level of a timestep, at any number of steps, and the steps of the solver."""
    pipe = tiny.cogview4(FlowMatchEulerDiscreteScheduler(**SCHEDULERS[kind]))
    pipe.set_progress_bar_config(disable=True)
    teacher = find(TEACHERS, "cogview4").wrap(pipe, size=tiny.SIDES)
    path = teacher.denoiser.path
    for steps in (1, 2, 7):
        timesteps = [entry["timestep"][0] for entry in run(pipe, teacher, teacher.usual_call(steps, 1.0)).inputs]
        angles = path.angle(torch.stack(timesteps))
        torch.testing.assert_close(path.native(angles)[1].float(), pipe.scheduler.sigmas[:-1], atol=1e-6, rtol=0)
        assert path.solver_times(steps) == [*angles.tolist(), 0.0]
        torch.testing.assert_close(path.timestep(angles).float(), torch.stack(timesteps))
    assert path.shift != 1.0 and torch.stack(timesteps).tolist() == [1000, 833, 667, 500, 334, 167, 1]


@pytest.mark.slow
def test_a_distilled_krea_2_has_one_shift_at_all_sizes_and_exports_keep_the_settings(tiny_media, tmp_path):
    pipe = tiny.krea2(is_distilled=True)
    pipe.set_progress_bar_config(disable=True)
    teacher = find(TEACHERS, "krea2").wrap(pipe, size=tiny.SIDES)
    assert teacher.denoiser.path.shift == pytest.approx(math.exp(1.15))
    run(pipe, teacher, teacher.usual_call(2, 1.0))
    levels = [teacher.denoiser.path.angle(1000 * sigma.double()).item() for sigma in pipe.scheduler.sigmas]
    torch.testing.assert_close(teacher.denoiser.path.solver_times(2), levels, atol=1e-5, rtol=0)
    exported = teacher.pipeline(teacher.student(), [teacher.denoiser.path.t_max])
    assert exported.config.is_distilled and exported.text_encoder_select_layers == (0, 2)
    pipe.save_config(tmp_path)
    assert distilled(str(tmp_path)) and not distilled(str(tiny_media("Krea 2")[1]))


@pytest.mark.slow
def test_experts_of_nucleus_have_gradients_and_compute_what_the_stock_network_does(load_media, tiny_media):
    stock = DiffusionPipeline.from_pretrained(tiny_media("NucleusMoE-Image")[1]).transformer.eval()
    teacher = load_media("NucleusMoE-Image")
    student, cond = teacher.student(), teacher.condition(prompts_of(teacher))
    x, t = torch.randn(2, *teacher.shape), torch.tensor([200.0, 700.0])
    for module in student.network.modules():
        if isinstance(module, SwiGLUExperts):
            module.use_grouped_mm = True  # a kernel without a forward derivative, which is not called
    found = student.call(student.network, x, t, cond)
    with torch.no_grad():
        assert difference(found, student.call(stock, x, t, cond)) < 1e-5
    found.square().mean().backward()
    experts = [p for name, p in student.network.named_parameters() if ".experts." in name]
    assert len(experts) == 2 * 2 and all(p.grad.flatten(1).abs().amax(1).gt(0).all() for p in experts)


@pytest.mark.slow
def test_prompts_of_ernie_image_are_not_rewritten(load_media):
    teacher = load_media("ERNIE-Image")
    pipe = teacher.pipeline(teacher.student(), [teacher.denoiser.path.t_max])
    assert pipe.pe is None and pipe.pe_tokenizer is None
    assert teacher.calls(1)["use_pe"] is False and teacher.usual_call(2, 3.0)["use_pe"] is False
    with pytest.raises(ValueError, match=r"a prompt must have at most 512 tokens, got 600: 'zzz"):
        teacher.condition(["z" * 600])


@pytest.mark.parametrize("name", ["Z-Image", "Z-Image Omni", "Lumina-Image 2.0", "Krea 2", "ERNIE-Image"])
@pytest.mark.first_is_quick
def test_features_of_a_sample_do_not_depend_on_the_other_prompts_of_a_batch(name, load_media):
    """Their blocks have the tokens of samples and prompts in one sequence, as long as the longest prompt."""
    teacher, x, t = load_media(name), torch.randn(2, *load_media(name).shape), torch.tensor([0.5, 1.0])
    found = []
    with torch.no_grad():
        for other in ("a", "a photo of a coat on a small table"):
            found.append(features(teacher.denoiser, x, t, teacher.condition(["an ankle boot", other]))[:1])
        moved = features(teacher.denoiser, x.roll(1, -1), t, teacher.condition(["an ankle boot", "a"]))[:1]
    assert difference(found[0], found[1]) < 1e-4 and difference(found[0], moved) > 1e-2


@pytest.mark.parametrize("name", ["Chroma", *sorted({*NAMES} - {"Chroma", "Lumina-Next"})])
@pytest.mark.slow
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


WIDTHS = dict.fromkeys(["Z-Image", "Z-Image Omni", "Lumina-Image 2.0"], "cap_feat_dim")
WIDTHS |= {"Lumina-Next": "cross_attention_dim", "CogView4": "text_embed_dim", "Krea 2": "text_hidden_dim"}
WIDTHS |= {"ERNIE-Image": "text_in_dim"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.first_is_quick
def test_a_transformer_for_text_of_another_width_is_refused(name, tiny_media, tmp_path):
    family, folder, size = tiny_media(name)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file, key = tmp_path / "transformer" / "config.json", WIDTHS.get(name, "joint_attention_dim")
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: 48}))
    with pytest.raises(ValueError, match=rf"{key} .*48|48.*{key}"):
        sketch(str(tmp_path), find(TEACHERS, family), size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), in_turn(NAMES, ["dmd", "scm"]))
@pytest.mark.sampled
def test_memory_is_planned_on_the_meta_device(name, method, tiny_media):
    family, folder, size = tiny_media(name)
    recipe = Recipe("run", TeacherRecipe(str(folder), family=family, guidance=3.0, size=size), {"name": method})
    found = memory_plan.plan(recipe, 2)
    assert found.weights > 0 and found.activations > 0 and math.isfinite(found.activations)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled
def test_digests_do_not_change_with_use_and_are_those_of_another_copy(name, tiny_media):
    family, folder, size = tiny_media(name)
    teacher, again = (find(TEACHERS, family).load(str(folder), torch.device("cpu"), size=size) for _ in range(2))
    before = teacher.digest()
    cond, x = teacher.condition(prompts_of(teacher)), torch.randn(2, *teacher.shape)
    with torch.no_grad():
        teacher.velocity(x, torch.tensor([0.5, 1.0]), cond, 3.0)
    assert teacher.digest() == before == again.digest()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled
@pytest.mark.first_is_quick
def test_text_encoders_are_loaded_on_demand(name, load_media, tiny_media):
    family, folder, size = tiny_media(name)
    teacher = find(TEACHERS, family).load(str(folder), torch.device("cpu"), size=size)
    assert not teacher.text_encoders_loaded
    teacher.condition(["a coat"])
    assert teacher.text_encoders_loaded
    teacher.unload_encoders()
    assert not teacher.text_encoders_loaded


def test_pure_noise_is_a_flows_timestep_1000(load_media):
    """Of its 1000 timesteps; tables of noise end at 999."""
    teacher = load_media("Z-Image")
    method = DMD(teacher, 1.0, DMDOptions(timesteps=(1000, 500)))
    assert method.times[0] == teacher.denoiser.path.t_max
    with pytest.raises(ValueError, match=r"method\.timesteps must decrease and be from 1 to 1000, got \[1001\]"):
        DMD(teacher, 1.0, DMDOptions(timesteps=(1001,)))
