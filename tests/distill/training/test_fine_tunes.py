"""Distillation of a user's own fine-tune: teacher.loras and teacher.negative_prompt."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from distill.data.plan import Plan
from distill.memory import print_memory
from distill.train import train
from distill.training.run_folder import fingerprint
from distill.training.setup import check_fine_tunes, load_teacher
from eval.pipelines.runs import read_run
from eval.pipelines.shared_settings import tuned_teacher_folder
from teachers.describe import describe
from teachers.loading.lora_files import Lora
from teachers.loading.loras import fuse
from tests.teachers.fine_tunes import adapted, write_diffusers, write_kohya, write_peft

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NAMES = ["Stable Diffusion 1.5", "Stable Diffusion XL"]
WRITERS = {
    "diffusers": lambda pipe, root: write_diffusers(pipe, root / "lora"),
    "kohya": lambda pipe, root: write_kohya(pipe, root / "kohya.safetensors"),
    "peft": lambda pipe, root: write_peft(pipe, root / "peft"),
}


@pytest.fixture
def recipe_of(two_step_recipe, folder_of):
    """recipe_of(name, *overrides): a recipe of two steps with the tiny pipeline `name`."""
    return lambda name, *overrides: two_step_recipe(*folder_of(name), *overrides)


def base_of(folder_of, name):
    return DiffusionPipeline.from_pretrained(folder_of(name)[1])


def stock_fused(folder_of, name, file, scale, target):
    """The folder into which stock diffusers fuses a LoRA file."""
    pipe = base_of(folder_of, name)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    pipe.save_pretrained(target)
    return target


def network_of(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("name", "written", "tier"),
    list(zip(NAMES, ["diffusers", "kohya"], ["lora", "full"], strict=True)),
)
@pytest.mark.exhaustive
def test_student_equals_that_of_the_folder_that_diffusers_fused(recipe_of, folder_of, tmp_path, name, written, tier):
    file = WRITERS[written](adapted(base_of(folder_of, name)), tmp_path)
    fused = stock_fused(folder_of, name, file, 0.7, tmp_path / "fused")
    own = train(recipe_of(name, f"teacher.loras=[{{path: {file}, scale: 0.7}}]", f"memory.tier={tier}", "name=own"))
    theirs = train(recipe_of(name, f"teacher.path={fused}", f"memory.tier={tier}", "name=theirs"))
    base, one, two = network_of(folder_of(name)[1]), network_of(own), network_of(theirs)
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert any((one[key] - base[key]).abs().max() > 1e-2 for key in base)
    if tier == "lora":
        ours, other = (load_file(f / "lora" / "pytorch_lora_weights.safetensors") for f in (own, theirs))
        assert all(torch.equal(ours[key], other[key]) for key in other)
    record = json.loads((own / "distill.json").read_text())
    assert record["teacher"]["loras"][0]["scale"] == 0.7 and len(record["teacher"]["loras"][0]["sha256"]) == 64
    teacher = tuned_teacher_folder([read_run(own)])
    assert all(torch.equal(value, network_of(teacher)[key]) for key, value in network_of(fused).items())


@pytest.mark.parametrize("written", WRITERS)
def test_every_format_is_fused_alike(folder_of, tmp_path, written):
    base = base_of(folder_of, NAMES[0])
    file = WRITERS[written](adapted(base_of(folder_of, NAMES[0])), tmp_path)
    state = {key: value.clone() for key, value in base.unet.state_dict().items()}
    assert fuse(base, Lora(str(file), 0.5), "unet") == {"unet"}
    tuned = adapted(base_of(folder_of, NAMES[0])).unet.state_dict()
    layers = [key.removesuffix(".lora_A.default.weight") for key in tuned if "lora_A" in key and "attn" in key]
    assert len(layers) > 8
    for layer in layers:
        change = tuned[f"{layer}.lora_B.default.weight"] @ tuned[f"{layer}.lora_A.default.weight"]
        expected = state[f"{layer}.weight"] + 0.5 * 6 / 3 * change
        assert torch.allclose(base.unet.state_dict()[f"{layer}.weight"], expected, atol=1e-6)


def test_text_encoder_layers_are_fused_too(recipe_of, folder_of, tmp_path):
    tuned = adapted(base_of(folder_of, NAMES[0]), encoders=True)
    file = write_diffusers(tuned, tmp_path / "lora", encoders=True)
    recipe = recipe_of(NAMES[0], f"teacher.loras=[{file}]")
    check_fine_tunes(recipe)
    pair = tuned.text_encoder.state_dict()
    layer = next(key for key in pair if key.endswith("q_proj.lora_A.default.weight")).removesuffix(
        ".lora_A.default.weight"
    )
    expected = base_of(folder_of, NAMES[0]).text_encoder.state_dict()[f"{layer}.weight"]
    expected = expected + pair[f"{layer}.lora_B.default.weight"] @ pair[f"{layer}.lora_A.default.weight"]
    encoder = load_teacher(recipe, CPU).text_pipeline().text_encoder.state_dict()
    assert torch.allclose(encoder[f"{layer}.weight"], expected, atol=1e-6)


@pytest.mark.slow
def test_fine_tuned_folder_replaces_the_network(recipe_of, folder_of, tmp_path):
    tuned = base_of(folder_of, NAMES[0])
    with torch.no_grad():
        for parameter in tuned.unet.parameters():
            parameter.mul_(1.1)
    tuned.save_pretrained(tmp_path / "tuned")
    expected = network_of(tmp_path / "tuned")
    for number, path in enumerate((tmp_path / "tuned", tmp_path / "tuned" / "unet")):
        recipe = recipe_of(NAMES[0], f"teacher.loras=[{path}]", f"name=run{number}")
        check_fine_tunes(recipe)
        network = load_teacher(recipe, CPU).denoiser.network.state_dict()
        assert all(torch.equal(network[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match=r"must be 1, because it is a fine-tuned folder"):
        check_fine_tunes(recipe_of(NAMES[0], f"teacher.loras=[{{path: {path}, scale: 0.5}}]"))
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        check_fine_tunes(recipe_of(NAMES[0], f"teacher.loras=[{tmp_path / 'tuned' / 'vae'}]"))


def test_half_precision_rounds_the_fused_weights_once(recipe_of, folder_of, tmp_path):
    file = write_diffusers(adapted(base_of(folder_of, NAMES[0])), tmp_path / "lora")
    fused = network_of(stock_fused(folder_of, NAMES[0], file, 1.0, tmp_path / "fused"))
    recipe = recipe_of(NAMES[0], f"teacher.loras=[{file}]", "teacher.precision=bfloat16")
    network = load_teacher(recipe, CPU).denoiser.network.state_dict()
    assert all(torch.equal(network[key], fused[key].bfloat16()) for key in fused)


@pytest.mark.slow
def test_files_that_do_not_fit_are_refused_by_every_command(recipe_of, folder_of, tmp_path):
    """A layer that the network lacks, another model's file, and no LoRA at all."""
    file = write_diffusers(adapted(base_of(folder_of, NAMES[0])), tmp_path / "lora")
    state = load_file(file)
    extra = {
        key.replace("down_blocks.1", "down_blocks.7"): value.clone() for key, value in state.items() if "attn1" in key
    }
    save_file(state | extra, tmp_path / "extra.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "none.safetensors")
    wide = {key: torch.cat([value, value], dim=-1 if "lora_A" in key else 0) for key, value in state.items()}
    save_file({key: value.contiguous() for key, value in wide.items()}, tmp_path / "wide.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:300])
    messages = {
        "extra": "no layer takes unet.down_blocks.7",
        "wide": "does not fit the StableDiffusionPipeline",
        "none": "must be a LoRA file, got tensors such as weight",
        "cut": "corrupt or incomplete",
    }
    for name, message in messages.items():
        lora = tmp_path / f"{name}.safetensors"
        recipe = recipe_of(NAMES[0], f"teacher.loras=[{lora}]", f"name={name}")
        for command in (train, print_memory, lambda r: load_teacher(r, CPU)):
            with pytest.raises(ValueError, match=message) as error:
                command(recipe)
            assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=message):
            describe(recipe.teacher.path, loras=recipe.teacher.loras)
    with pytest.raises(ValueError, match=r"there is no .*absent\.safetensors"):
        recipe_of(NAMES[0], f"teacher.loras=[{tmp_path / 'absent.safetensors'}]")


def test_fingerprint_has_the_contents_and_the_scale_of_each_file(recipe_of, folder_of, tmp_path):
    file = write_diffusers(adapted(base_of(folder_of, NAMES[0])), tmp_path / "lora")
    moved = tmp_path / "moved.safetensors"
    shutil.copy(file, moved)
    other = write_diffusers(adapted(base_of(folder_of, NAMES[0]), seed=6), tmp_path / "other")

    def mark(*loras):
        return fingerprint(recipe_of(NAMES[0], f"teacher.loras=[{', '.join(map(str, loras))}]"), Plan([""]))

    assert mark(file) == mark(moved)
    marks = [mark(), mark(file), mark(other), mark(f"{{path: {file}, scale: 0.5}}"), mark(file, other)]
    assert len({json.dumps(entry) for entry in marks}) == 5
    assert not any("LoRA" in name or "negative" in name for name in marks[0])


@pytest.mark.parametrize("name", NAMES)
def test_negative_prompt_is_the_second_evaluation_of_guidance(recipe_of, name):
    recipe = recipe_of(name, "teacher.negative_prompt=a dress")
    teacher = load_teacher(recipe, CPU)
    x, t = torch.randn(1, *teacher.shape), torch.tensor([1.0])
    cond, negative = teacher.condition(["a coat"]), teacher.condition(["a dress"])
    with_prompt, without = (teacher.denoiser.velocity(x, t, c) for c in (cond, negative))
    guided = without + 2 * (with_prompt - without)
    assert torch.allclose(teacher.velocity(x, t, cond, 2.0), guided, atol=1e-5)
    plain = load_teacher(recipe_of(name), CPU)
    assert not torch.allclose(plain.velocity(x, t, cond, 2.0), guided, atol=1e-4)
    assert fingerprint(recipe, Plan([""])) != fingerprint(recipe_of(name), Plan([""]))


def test_negative_prompt_that_would_be_ignored_is_refused(recipe_of):
    with pytest.raises(ValueError, match=r"teacher\.negative_prompt must be null with teacher\.guidance=1"):
        recipe_of(NAMES[0], "teacher.negative_prompt=a dress", "teacher.guidance=1")
    with pytest.raises(ValueError, match="receive the guidance scale as an input"):
        recipe_of("Flux.1 dev", "teacher.negative_prompt=a dress")
