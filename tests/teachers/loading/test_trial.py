"""Pipelines that are too large or do not fit together: one message in `describe`, training and evaluation.

Nothing of their size is allocated: networks are built and evaluated on the meta device.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.pipelines.loading import load_pipeline as load_for_eval
from teachers.core.denoiser import Denoiser
from teachers.describe import describe
from teachers.loading import trial
from teachers.loading.registry import family_of, installed
from teachers.loading.trial import check_fit_once, check_teacher
from tests.teachers.tiny_pipelines import BUILDERS

CPU = torch.device("cpu")
SD, SDXL, SD3 = "Stable Diffusion 1.5", "Stable Diffusion XL", "Stable Diffusion 3.5"
PIXART = "PixArt-Sigma 512"
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
TRANSFORMER, SCHEDULER = "transformer/config.json", "scheduler/scheduler_config.json"
TOKENIZER, UNCONDITIONAL = "tokenizer/tokenizer_config.json", "unconditional UNet"


def message(read, folder):
    with pytest.raises(ValueError) as error:
        read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def train(folder):
    installed()[family_of(str(folder))].load(str(folder), CPU).condition([""])


def evaluate(folder):
    load_for_eval(folder, CPU, torch.float32)


READERS = (lambda folder: describe(str(folder)), train, evaluate)


@pytest.mark.parametrize("name", [SD, *(pytest.param(n, marks=pytest.mark.slow) for n in BUILDERS if n != SD)])
def test_every_family_fits_together(name, tiny):
    family, folder = tiny(name)
    assert check_teacher(str(folder), installed()[family]).shape


def test_hidden_files_do_not_repeat_a_check(tiny, tmp_path, monkeypatch):
    """Those that a system adds to a folder after it was checked."""
    family, folder = tiny(SD)
    shutil.copytree(folder, tmp_path / "teacher")
    checked = []
    monkeypatch.setattr(trial, "check_teacher", lambda *rest: checked.append(rest))
    for name in (None, ".DS_Store", "unet/._config.json", "unet/new.json"):
        if name is not None:
            (tmp_path / "teacher" / name).write_text("{}")
        trial.check_teacher_once(str(tmp_path / "teacher"), installed()[family])
    assert len(checked) == 2  # at first, and with new.json


@pytest.mark.slow
def test_equal_configurations_are_evaluated_once(tiny, tmp_path, monkeypatch):
    evaluations, velocity = [], Denoiser.velocity
    monkeypatch.setattr(Denoiser, "velocity", lambda self, *rest: evaluations.append(1) or velocity(self, *rest))
    family, folder = tiny(SD)
    one, two = (shutil.copytree(folder, tmp_path / name) for name in "ab")
    for copy in (one, two):
        change(copy / UNET, _note=str(tmp_path))
    change(two / SCHEDULER, beta_end=0.013)  # a student has another scheduler and another card
    (two / "README.md").write_text("# A student")
    for copy in (one, two, one):
        assert check_teacher(str(copy), installed()[family]).stock.text_encoder
    assert len(evaluations) == 1
    change(two / UNET, _note="another")
    check_teacher(str(two), installed()[family])
    assert len(evaluations) == 2


TOO_LARGE = [
    (SD, UNET, {"layers_per_block": 10**6}, "layers_per_block in .*unet.* must be at most 10,000"),
    (SD, UNET, {"transformer_layers_per_block": [10**9, 1]}, "transformer_layers_per_block in .* at most 10,000"),
    (SD, UNET, {"block_out_channels": [10**7, 10**7]}, "unet describes a network of more than 200,000,000,000"),
    (SD, UNET, {"sample_size": 10**6}, "sample_size in .* must be at most 4,096, got 1000000; set FEWSTEP_MAX_SIDE"),
    (SD, UNET, {"sample_size": [8, 10**6]}, "sample_size in .* must be at most 4,096"),
    (SD, UNET, {"cross_attention_dim": 10**12}, "cross_attention_dim in .* must be at most 2,147,483,647"),
    (SD, UNET, {"norm_eps": float("nan")}, "norm_eps in .* must be a finite number, got nan"),
    (SD, VAE, {"latent_channels": 10**9}, "vae describes a network of more than 200,000,.* set FEWSTEP"),
    (SD, VAE, {"sample_size": 10**6}, "sample_size in .*vae.* must be at most 4,096"),
    (SD, TEXT, {"num_hidden_layers": 10**9}, "num_hidden_layers in .*text_encoder.* must be at most 10,000"),
    (SD, TEXT, {"intermediate_size": 2**31 - 1}, "describes a network of (275,.* but|more than)"),
    (SD, TEXT, {"vocab_size": 10**6}, "describes a network of .* parameters, but its weights have"),
    (SD, TEXT, {"max_position_embeddings": 10**8}, "describes a network of .* parameters, but its weights have"),
    (SD, TOKENIZER, {"model_max_length": 10**9}, "model_max_length of .* a whole number from 2 to 16, .* got 1000"),
    (SD, TOKENIZER, {"model_max_length": 0}, "model_max_length of .* must be a whole number from 2 to 16"),
    (SD, SCHEDULER, {"num_train_timesteps": 10**12}, "num_train_timesteps in .* must be at most 1,000,000"),
    (SD, SCHEDULER, {"num_train_timesteps": 1e12}, "num_train_timesteps in .* must be at most 1,000,000"),
    (SD3, TRANSFORMER, {"pos_embed_max_size": 10**5}, "pos_embed_max_size in .* must be at most 4,096"),
    (SD3, TRANSFORMER, {"num_layers": 10**9}, "num_layers in .* must be at most 10,000"),
    ("Flux.1 dev", TRANSFORMER, {"num_single_layers": 10**9}, "num_single_layers in .* must be at most 10,000"),
    ("Sana", TEXT, {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers in .* must be at most 10,000"),
    (PIXART, TEXT, {"num_layers": 10**6}, "num_layers in .* must be at most 10,000"),
    ("DiT", TRANSFORMER, {"num_embeds_ada_norm": 10**10}, "num_embeds_ada_norm in .* must be at most 2,147,483,647"),
    (UNCONDITIONAL, UNET, {"block_out_channels": [10**6, 10**6]}, "unet describes a network of more than 200,000"),
]  # fmt: skip
UNFIT = [
    (SDXL, UNET, {"projection_class_embeddings_input_dim": 5 * 8 + 32}, "its unet cannot be evaluated at its default"),
    (SDXL, "text_encoder_2/config.json", {"projection_dim": 16}, "its unet cannot be evaluated at its default size"),
    (SDXL, "model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text encoders cannot encode"),
    (SD3, TRANSFORMER, {"sample_size": 64}, "its transformer cannot be evaluated at its default size, 4 x 64 x 64"),
    (SD3, TRANSFORMER, {"pooled_projection_dim": 48}, "its transformer cannot be evaluated at its default size"),
    (SD, UNET, {"sample_size": 7}, "its pipeline does not take its default size, 4 x 7 x 7 .*divisible by 8"),
    (SD, VAE, {"block_out_channels": [8, 8, 8, 8]}, "its decoder cannot decode 4 x 8 x 8"),
    (SD, UNET, {"norm_num_groups": 7}, "unet has a configuration that its class cannot be built from: num_channels"),
    (SD, TEXT, {"hidden_size": 48}, "cross_attention_dim of .* must be the width .*, 48, got 32"),
    (SD, TEXT, {"vocab_size": 10}, "have another shape of embeddings.token_embedding"),
    (SD, SCHEDULER, {"num_train_timesteps": -3}, "scheduler has a configuration that its class cannot be built from"),
    (SD, SCHEDULER, {"beta_start": "a"}, "scheduler has a configuration that its class cannot be built from"),
    ("Flux.1 dev", TRANSFORMER, {"axes_dims_rope": [4, 4, 4]}, "its transformer cannot be evaluated"),
    (PIXART, TRANSFORMER, {"cross_attention_dim": 48}, "its transformer cannot be evaluated"),
    ("Sana", TRANSFORMER, {"cross_attention_dim": 20}, "its transformer cannot be evaluated"),
    ("Sana", TRANSFORMER, {"patch_size": 3}, "its transformer cannot be evaluated"),
    ("DiT", TRANSFORMER, {"sample_size": 9}, "its transformer cannot be evaluated"),
    (UNCONDITIONAL, UNET, {"sample_size": 15}, "its unet cannot be evaluated at its default size, 3 x 15 x 15"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "values", "match"),
    (*TOO_LARGE, *UNFIT),
)
@pytest.mark.first_is_quick
def test_description_training_and_evaluation_refuse_alike(name, file, values, match, tiny, tmp_path):
    folder = shutil.copytree(tiny(name)[1], tmp_path / "pipeline")
    change(folder / file, **values)
    messages = {message(read, folder) for read in READERS}
    assert len(messages) == 1
    assert re.search(match, messages.pop())


@pytest.mark.parametrize("kind", ["fourier", "learned"])
@pytest.mark.first_is_quick
def test_pixel_networks_need_positional_time_embeddings(kind, tiny, tmp_path):
    folder = shutil.copytree(
        tiny(UNCONDITIONAL)[1], tmp_path / "pipeline", ignore=shutil.ignore_patterns("*.safetensors")
    )
    change(folder / UNET, time_embedding_type=kind, num_train_timesteps=1000)
    messages = {message(read, folder) for read in READERS[:2]}
    assert len(messages) == 1
    assert f"time_embedding_type of the UNet2DModel must be positional, got {kind}" in messages.pop()


@pytest.mark.slow
def test_a_network_of_very_many_modules_is_not_built_to_its_end(tiny, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny(SD)[1], tmp_path / "pipeline")
    change(folder / UNET, layers_per_block=9000)
    monkeypatch.setenv("FEWSTEP_MAX_MODULES", "300")
    messages = {message(read, folder) for read in READERS}
    assert len(messages) == 1
    assert "unet describes a network of more than 300 modules; set FEWSTEP_MAX_MODULES" in messages.pop()


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[" * 10**5, '{"sample_size": ' + "9" * 5000 + "}", "[]", "x"])
@pytest.mark.parametrize("file", [UNET, SCHEDULER, "model_index.json"])
@pytest.mark.first_is_quick
def test_configurations_that_are_not_plain_json_are_refused_alike(text, file, tiny, tmp_path):
    folder = shutil.copytree(tiny(SD)[1], tmp_path / "pipeline")
    (folder / file).write_text(text)
    for read in READERS:
        assert str(folder / file) in message(read, folder)


def test_a_configuration_has_a_largest_size(tiny, tmp_path):
    folder = shutil.copytree(tiny(SD)[1], tmp_path / "pipeline")
    change(folder / UNET, notes="x" * 2**22)
    messages = {message(read, folder) for read in READERS}
    assert len(messages) == 1
    assert "must have at most 4,194,304 bytes" in messages.pop()


def test_weights_that_are_larger_than_the_memory_are_refused_before_they_are_read(tiny, tmp_path):
    folder = shutil.copytree(tiny(SD)[1], tmp_path / "pipeline")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**41], "data_offsets": [0, 2**43]}}).encode()
    with file.open("wb") as stream:  # sparse: it takes no space on the disk
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 2**43)
    for read in READERS[1:]:
        # Some systems refuse to map such a file already.
        assert re.search("must fit into the memory of this machine|too large to be mapped", message(read, folder))


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_description_reads_the_values_of_the_weights(value, tiny, tmp_path):
    folder = shutil.copytree(tiny(SD)[1], tmp_path / "pipeline")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = value
    save_file(tensors, file, {"format": "pt"})
    messages = {message(read, folder) for read in READERS}
    assert messages == {
        f"{folder / 'unet'} has values of conv_in.bias that are infinite or not a number in torch.float32"
    }


def test_a_tokenizer_that_cannot_be_read_is_named(tiny, tmp_path):
    folder = shutil.copytree(tiny(SD)[1], tmp_path / "pipeline")
    file = folder / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding": "none"}))
    text = message(READERS[0], folder)
    assert f"{folder / 'tokenizer'} has files that its tokenizer cannot be read from: " in text


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_alike(tiny, tmp_path):
    folder = shutil.copytree(tiny(SD)[1], tmp_path / "pipeline")
    file = folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["zebra</w>"] = 5000
    file.write_text(json.dumps(tokenizer))
    messages = {message(read, folder) for read in READERS}
    assert len(messages) == 1
    assert "no row 5000 for the token 'zebra</w>'" in messages.pop()


@pytest.mark.parametrize("value", ["1", None, [1], -1, 1e20])
def test_a_wrong_size_in_a_record_is_named(value, tiny_media, tmp_path):
    family, folder, _ = tiny_media("Stable Audio")
    shutil.copytree(folder, tmp_path / "pipeline")
    (tmp_path / "pipeline" / "distill.json").write_text(json.dumps({"teacher": {"size": {"seconds": value}}}))
    with pytest.raises(
        ValueError, match=r"distill\.json has a wrong size \(teacher\.size\.seconds must be above 0 and"
    ):
        check_fit_once(str(tmp_path / "pipeline"), installed()[family])
