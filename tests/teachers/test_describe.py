"""`fewstep describe` and `fewstep families`: families are found and described from configuration alone."""

import json
import re
import shutil

import pytest
import torch

from distill.config.registry import TEACHERS, find
from distill.methods.dmd import DMD
from distill.methods.dmd_options import DMDOptions
from distill.methods.scm import SCM, SCMOptions
from teachers.describe import describe, parameters
from teachers.loading.registry import family_of
from teachers.loading.sketch import DMD_BYTES, SCM_BYTES, sketch
from tests.commands import fewstep

CPU = torch.device("cpu")
NAMES = {
    "Stable Diffusion 1.5": "epsilon",
    "Stable Diffusion 2.1 (v, zero SNR)": "v_prediction",
    "Stable Diffusion XL": "epsilon",
    "Stable Diffusion 3.5": "flow_prediction",
    "Flux.1 dev": "flow_prediction",
    "PixArt-Alpha 1024": "epsilon",
    "Hunyuan-DiT": "v_prediction",
    "Sana": "flow_prediction",
    "DiT": "epsilon",
    "unconditional UNet": "epsilon",
    "Playground 2.5": "edm_epsilon",
    "EDM, ImageNet-64": "edm_epsilon",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled
def test_sketch_equals_the_loaded_teacher_without_weights(name, tiny):
    family, folder = tiny(name)
    assert family_of(str(folder)) == family
    cls = find(TEACHERS, family)
    sketched, loaded = sketch(str(folder), cls), cls.load(str(folder), CPU)
    assert sketched.shape == loaded.shape
    assert sketched.image_size == loaded.image_size
    assert sketched.denoiser.path.t_max == loaded.denoiser.path.t_max
    assert sketched.denoiser.prediction == loaded.denoiser.prediction == NAMES[name]
    assert parameters(sketched.denoiser.network) == parameters(loaded.denoiser.network)
    assert next(sketched.denoiser.network.parameters()).is_meta


@pytest.mark.slow
def test_description_needs_no_weights(tiny, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny("Stable Diffusion XL")[1], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    text = describe(str(folder))
    for part in ("stable_diffusion_xl", "variance preserving, 1000 timesteps", "1.5025 rad", "16 x 16, from 4 x 8 x 8"):
        assert part in text


@pytest.mark.slow
def test_components_are_unknown_only_if_there_are_some(tiny, tmp_path):
    shutil.copytree(tiny("Stable Diffusion XL")[1], tmp_path / "sdxl", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "components unknown" in describe(str(tmp_path / "sdxl"))
    assert "components vae" not in describe(str(tmp_path / "sdxl"))
    assert "components" not in describe(str(tiny("EDM, ImageNet-64")[1]))


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


FAULTS = {
    "an inpainting network": ("unet/config.json", {"in_channels": 9}, "in_channels of the unet must be 4"),
    "an odd output": ("unet/config.json", {"out_channels": 6}, "out_channels of the unet must be 4"),
    "class embeddings": ("unet/config.json", {"num_class_embeds": 10}, "num_class_embeds of the unet must be None"),
    "another text encoder": ("unet/config.json", {"cross_attention_dim": 48}, "cross_attention_dim of .* 32, got 48"),
    "no text encoder": ("model_index.json", {"text_encoder": [None, None]}, "must have a text_encoder, got null"),
    "quantized weights": (
        "text_encoder/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}},
        "text_encoder must not be quantized, got bitsandbytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_description_refuses_components_that_do_not_fit_together(fault, tiny, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny("Stable Diffusion 1.5")[1], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file, values, message = FAULTS[fault]
    change(folder / file, **values)
    with pytest.raises(ValueError, match=message):
        describe(str(folder))


@pytest.mark.parametrize("name", ["text_encoder", "tokenizer", "vae", "scheduler"])
@pytest.mark.first_is_quick
def test_missing_folder_of_a_component_is_named_by_description_and_loading_alike(name, tiny, tmp_path):
    family, source = tiny("Stable Diffusion 1.5")
    folder = tmp_path / "pipeline"
    shutil.copytree(source, folder)
    shutil.rmtree(folder / name)
    for use in (describe, lambda path: find(TEACHERS, family).load(path, CPU)):
        with pytest.raises(ValueError, match=f"has no folder {name}, which its model_index.json names"):
            use(str(folder))


@pytest.mark.slow
def test_stable_diffusion_3_saved_without_t5_is_loaded_with_its_text_encoders(tiny, tmp_path):
    family, source = tiny("Stable Diffusion 3.5")
    folder = tmp_path / "pipeline"
    shutil.copytree(source, folder)
    change(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
    assert "flow_prediction" in describe(str(folder))
    teacher = find(TEACHERS, family).load(str(folder), CPU)
    assert teacher.condition(["a bag"])["encoder_hidden_states"].isfinite().all()


def training_bytes(distiller) -> int:
    """Bytes of all tensors at the peak of a step, with one phase at a time as in the training loop."""
    networks = [distiller.teacher.denoiser, distiller]
    optimizers, largest = [], 0
    for modules in distiller.networks().values():
        weights = [p for module in modules for p in module.parameters()]
        optimizer = torch.optim.AdamW(weights, fused=True)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        largest = max(largest, sum(p.grad.nbytes for p in weights))
        optimizer.zero_grad(set_to_none=True)
        optimizers.append(optimizer)
    moments = [t for o in optimizers for state in o.state.values() for t in state.values() if t.ndim]
    ema = sum(p.nbytes for p in distiller.student.parameters())
    return sum(p.nbytes for n in networks for p in n.parameters()) + sum(t.nbytes for t in moments) + largest + ema


@pytest.mark.slow
def test_described_memory_equals_the_tensors_of_training(tiny):
    family, folder = tiny("Stable Diffusion 1.5")
    teacher = find(TEACHERS, family).load(str(folder), CPU)
    size = parameters(teacher.denoiser)
    assert training_bytes(DMD(teacher, 1.0, DMDOptions())) == size * DMD_BYTES
    assert training_bytes(SCM(teacher, 1.0, SCMOptions())) == size * SCM_BYTES


def test_unknown_pipeline_raises_an_error_that_says_what_to_do(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline"}))
    assert fewstep("describe", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no installed family takes a KolorsPipeline (fewstep families lists")
    for part in ("teachers/families/dit.py", "distill.teachers"):
        assert part in error


@pytest.mark.slow
def test_commands_print_families_and_descriptions(capsys):
    assert fewstep("families") == 0
    out = capsys.readouterr().out
    assert "flux                   FluxPipeline" in out
    counted = re.search(r"(\d+) of (\d+) for text to image, (\d+) of (\d+) for text to video", out)
    assert fewstep("families", "--missing") == 0
    missing = capsys.readouterr().out.splitlines()
    assert "  WuerstchenCombinedPipeline" in missing and "  WanPipeline" not in missing
    images = missing[: missing.index("text to video:")]
    assert counted is not None and len(images) - 1 == int(counted[2]) - int(counted[1])
    assert fewstep("describe", "pocket") == 0
    assert "family     stable_diffusion (StableDiffusionPipeline)" in capsys.readouterr().out
    assert fewstep("describe", "./nowhere") == 2
    assert "there is no pipeline folder ./nowhere" in capsys.readouterr().err


def without_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def cut_short(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_an_embedding(folder):
    file = folder / "tokenizer" / "added_tokens.json"
    file.write_text(json.dumps({"<my-cat>": 10**6}))


@pytest.mark.parametrize("damage", [without_weights, cut_short, without_an_embedding])
@pytest.mark.first_is_quick
def test_describe_refuses_what_training_refuses_with_the_same_sentence(damage, tiny, tmp_path):
    family, folder = tiny("Stable Diffusion 1.5")
    shutil.copytree(folder, tmp_path / "teacher")
    damage(tmp_path / "teacher")
    with pytest.raises(ValueError) as trained:
        find(TEACHERS, family).load(str(tmp_path / "teacher"), CPU)
    with pytest.raises(ValueError) as described:
        describe(str(tmp_path / "teacher"))
    assert str(described.value) == str(trained.value)


@pytest.mark.slow
def test_a_model_of_few_steps_is_described_as_distilled(text_pipeline, tmp_path):
    for name in ("plain", "lcm", "student"):
        shutil.copytree(text_pipeline, tmp_path / name)
    index = tmp_path / "lcm/model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "LCMScheduler"))
    (tmp_path / "student/distill.json").write_text("{}")
    assert "distilled " not in describe(str(tmp_path / "plain"))
    assert "its scheduler is LCMScheduler, which is for models of few steps" in describe(str(tmp_path / "lcm"))
    assert "it is a student of fewstep; a teacher should be a model" in describe(str(tmp_path / "student"))
