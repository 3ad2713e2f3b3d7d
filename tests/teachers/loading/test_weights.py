"""The networks of a loaded pipeline have exactly the parameters of their files, or loading is refused."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from eval.pipelines.loading import load_pipeline as load_for_eval
from teachers.describe import describe
from teachers.families.stable_diffusion import StableDiffusion
from teachers.loading.weights import check_networks, load_network, weight_files
from tests.teachers.tiny_pipelines import BUILDERS

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
PROMPT = ["a photo of a bag"]


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of a tiny Stable Diffusion."""
    return shutil.copytree(tiny("Stable Diffusion 1.5")[1], tmp_path / "pipeline")


def change(file, edit):
    """Replace the tensors of `file` by those that `edit` returns."""
    save_file({key: value.contiguous() for key, value in edit(load_file(file)).items()}, file, {"format": "pt"})


def load_all(folder):
    teacher = StableDiffusion.load(str(folder), CPU)
    teacher.condition(PROMPT)
    return teacher


def refuse_everywhere(folder, match):
    """Training, description and evaluation refuse the folder with a sentence that matches."""
    readers = (load_all, lambda path: describe(str(path)), lambda path: load_for_eval(path, CPU, torch.float32))
    for read in readers:
        with pytest.raises(ValueError, match=match) as error:
            read(folder)
        assert "\n" not in str(error.value)


def without(*parts):
    return lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in parts)}


FAULTS = {
    "a missing parameter": (UNET, without("conv_in.bias"), "unet are not those .* lack conv_in.bias"),
    "a missing parameter of a text encoder": (TEXT, without("final_layer_norm"), "text_encoder .*lack .*final_layer"),
    "no encoder": (VAE, without("encoder.conv"), "vae are not those of its AutoencoderKL: they lack .*and . more"),
    "an unknown key": (UNET, lambda t: t | {"conv_in.extra": torch.zeros(1)}, "also have conv_in.extra"),
    "an unknown key of a text encoder": (TEXT, lambda t: t | {"extra.w": torch.zeros(1)}, "also have extra.w"),
    "another shape": (UNET, lambda t: t | {"conv_in.bias": torch.zeros(3)}, "unet are not those .*conv_in.bias"),
    "another shape of a text encoder": (
        TEXT,
        lambda t: {k: v[:, :4] if "position_embedding" in k else v for k, v in t.items()},
        "text_encoder are not those .*have another shape of .*position_embedding.weight",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_weights_that_are_not_the_network_s_are_refused_everywhere(name, folder):
    file, edit, match = FAULTS[name]
    change(folder / file, edit)
    refuse_everywhere(folder, match)


@pytest.mark.slow
def test_adapters_inside_the_network_are_refused_everywhere(folder, tiny):
    pipe = StableDiffusionPipeline.from_pretrained(tiny("Stable Diffusion 1.5")[1], safety_checker=None)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipe.unet.save_pretrained(folder / "unet")
    refuse_everywhere(folder, r"unet are not those .*to_q.*; merge or unload the adapters")


@pytest.mark.slow
def test_adapters_inside_the_text_encoder_are_refused_everywhere(folder, tiny):
    pipe = StableDiffusionPipeline.from_pretrained(tiny("Stable Diffusion 1.5")[1], safety_checker=None)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), pipe.text_encoder)
    pipe.text_encoder.save_pretrained(folder / "text_encoder")
    refuse_everywhere(folder, r"text_encoder are not those .*q_proj.*; merge or unload the adapters")


def test_an_adapter_next_to_the_weights_is_refused_everywhere(folder):
    (folder / "text_encoder" / "adapter_config.json").write_text("{}")
    refuse_everywhere(folder, r"text_encoder holds an adapter \(adapter_config.json\)")


@pytest.mark.slow
def test_a_missing_shard_and_a_shard_without_its_keys_are_refused_everywhere(folder, tiny):
    pipe = StableDiffusionPipeline.from_pretrained(tiny("Stable Diffusion 1.5")[1], safety_checker=None)
    (folder / UNET).unlink()
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    load_all(folder)
    describe(str(folder))
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    name = next(iter(load_file(shards[1])))
    change(shards[1], lambda tensors: {k: v for k, v in tensors.items() if k != name})
    refuse_everywhere(folder, f"unet are not those of their index: they differ in {name}")
    shards[1].unlink()
    refuse_everywhere(folder, f"unet lacks {shards[1].name}, which the index of its weights lists")


@pytest.mark.slow
def test_weights_of_another_class_are_refused_everywhere(folder, tiny):
    shutil.copy(tiny("Stable Diffusion XL")[1] / UNET, folder / UNET)
    refuse_everywhere(folder, "unet are not those of")


def test_a_class_that_is_not_installed_is_refused_everywhere(folder):
    index = json.loads((folder / "model_index.json").read_text())
    for part, library in (("scheduler", "diffusers"), ("text_encoder", "transformers")):
        changed = index | {part: [library, "NoSuchClass"]}
        (folder / "model_index.json").write_text(json.dumps(changed))
        refuse_everywhere(folder, f"{library} has no class NoSuchClass")


@pytest.mark.slow
@pytest.mark.parametrize(("file", "part"), [(UNET, "unet"), (TEXT, "text_encoder"), (VAE, "vae")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.sampled
def test_weights_that_are_not_finite_are_refused_with_their_name(file, part, value, folder):
    name = next(iter(load_file(folder / file)))
    change(folder / file, lambda tensors: tensors | {name: tensors[name].fill_(value)})
    for read in (load_all, lambda path: load_for_eval(path, CPU, torch.float32)):
        with pytest.raises(ValueError, match=rf"{part} has values of \S+ that are infinite or not a number"):
            read(folder)


@pytest.mark.slow
def test_weights_that_overflow_in_half_precision_are_refused(folder):
    change(folder / UNET, lambda tensors: tensors | {"conv_in.bias": tensors["conv_in.bias"].fill_(1e6)})
    with pytest.raises(ValueError, match=r"unet has values of conv_in.bias that are infinite .* in torch.float16"):
        StableDiffusion.load(str(folder), CPU, torch.float16)
    StableDiffusion.load(str(folder), CPU)  # the sum is finite in float32


# --- variants ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_with_one_variant_only_loads_and_names_it(tiny, tmp_path, logged):
    pipe = StableDiffusionPipeline.from_pretrained(
        tiny("Stable Diffusion 1.5")[1], safety_checker=None, dtype=torch.float16
    )
    for name, sharded in (("whole", {}), ("shards", {"max_shard_size": "100KB"})):
        pipe.save_pretrained(tmp_path / name, variant="fp16", **sharded)
        teacher = load_all(tmp_path / name)
        assert "unet has only weights of the variant fp16, which are loaded" in "\n".join(logged)
        assert torch.equal(teacher.denoiser.network.conv_in.bias, pipe.unet.conv_in.bias.float())
        load_for_eval(tmp_path / name, CPU, torch.float32)
        text = describe(str(tmp_path / name))
        assert "variants   text_encoder fp16, unet fp16, vae fp16" in text
        assert "components text_encoder" in text


@pytest.mark.slow
def test_plain_weights_win_over_variants_of_the_same_component(folder):
    file = folder / UNET
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    file.with_name("diffusion_pytorch_model.fp16.safetensors")
    (folder / TEXT).rename(folder / "text_encoder" / "model.ema.safetensors")
    assert check_networks(folder) == ["text_encoder ema"]
    load_all(folder)


@pytest.mark.slow
def test_hidden_files_of_macos_are_read_by_nothing(folder):
    """macOS writes a binary file "._NAME" beside each NAME to disks of other systems, and .DS_Store."""
    described, expected = describe(str(folder)), load_all(folder).denoiser.network.state_dict()
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (folder / "unet" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert describe(str(folder)) == described
    assert all(
        torch.equal(value, expected[key]) for key, value in load_all(folder).denoiser.network.state_dict().items()
    )
    load_for_eval(folder, CPU, torch.float32)


@pytest.mark.slow
def test_several_variants_without_plain_weights_are_refused_everywhere(folder):
    file = folder / UNET
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    file.rename(file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    refuse_everywhere(folder, "unet must have weights without a variant, or one variant, got fp16, non_ema")


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.non_ema.safetensors"], "non_ema"),
        (["pytorch_lora_weights.safetensors"], None),
    ],
)
def test_variants_are_read_from_names(files, variant, tmp_path):
    for file in files:
        (tmp_path / file).touch()
    found, listed = weight_files(tmp_path)
    assert found == variant
    assert [file.name for file in listed] == [f for f in files if "lora" not in f and (variant or ".fp16" not in f)]


# --- differences that change nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.sampled
@pytest.mark.slow
def test_every_family_fits_its_own_files(name, tiny):
    assert check_networks(tiny(name)[1]) == []


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_clip_files_of_all_versions_load(prefix, folder, tiny):
    """Files have position_ids or not, and the prefix text_model or not."""
    expected = load_all(tiny("Stable Diffusion 1.5")[1]).condition(PROMPT)["encoder_hidden_states"]

    def older(tensors):
        plain = {prefix + key.removeprefix("text_model."): value for key, value in tensors.items()}
        return plain | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}

    change(folder / TEXT, older)
    describe(str(folder))
    torch.testing.assert_close(load_all(folder).condition(PROMPT)["encoder_hidden_states"], expected)


@pytest.mark.parametrize("kept", [("shared.weight",), ("encoder.embed_tokens.weight",), ()])
def test_tied_embeddings_of_t5_load_under_either_name(kept, tmp_path):
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    model.save_pretrained(tmp_path)
    both = ("shared.weight", "encoder.embed_tokens.weight")

    def rename(tensors):
        embedding = next(tensors[key] for key in both if key in tensors)
        rest = {key: value for key, value in tensors.items() if key not in both}
        return rest | {key: embedding.clone() for key in kept or both}

    change(tmp_path / "model.safetensors", rename)
    loaded = load_network(T5EncoderModel, tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, model.shared.weight)
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    load_network(T5EncoderModel, tmp_path, device="meta")


def test_the_decoder_in_a_file_of_a_whole_t5_is_ignored(tmp_path):
    model = T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    model.save_pretrained(tmp_path)
    change(tmp_path / "model.safetensors", lambda t: t | {"decoder.block.0.layer.0.layer_norm.weight": torch.ones(8)})
    load_network(T5EncoderModel, tmp_path)


def test_the_older_attention_names_of_an_autoencoder_load(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    vae.save_pretrained(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(tensors):
        for new, old in names.items():
            tensors = {key.replace(f".{new}.", f".{old}."): value for key, value in tensors.items()}
        return tensors

    change(tmp_path / "diffusion_pytorch_model.safetensors", older)
    loaded = load_network(AutoencoderKL, tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in vae.state_dict().items())
    load_network(AutoencoderKL, tmp_path, device="meta")


def test_a_stored_position_table_that_is_a_buffer_now_is_ignored(tiny, tmp_path):
    folder = shutil.copytree(tiny("PixArt-Sigma 512")[1], tmp_path / "pipeline")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    change(file, lambda tensors: tensors | {"pos_embed.pos_embed": torch.zeros(1, 16, 24)})
    check_networks(folder)


@pytest.mark.slow
def test_an_optional_text_encoder_may_be_absent(tiny, tmp_path):
    pipe = StableDiffusion3Pipeline.from_pretrained(
        tiny("Stable Diffusion 3.5")[1], text_encoder_3=None, tokenizer_3=None
    )
    pipe.save_pretrained(tmp_path)
    assert check_networks(tmp_path) == []


@pytest.mark.slow
def test_pickled_weights_are_read_by_evaluation_only_if_allowed_and_as_strictly(folder):
    file = folder / "unet" / "diffusion_pytorch_model.bin"
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    torch.save(tensors, file)
    load_for_eval(folder, CPU, torch.float32, allow_pickle=True)
    for load in (load_all, lambda folder: load_for_eval(folder, CPU, torch.float32)):
        with pytest.raises(ValueError, match="has no safetensors weights"):
            load(folder)
    torch.save({key: value for key, value in tensors.items() if key != "conv_in.bias"}, file)
    with pytest.raises(ValueError, match=r"lack conv_in.bias"):
        load_for_eval(folder, CPU, torch.float32, allow_pickle=True)


@pytest.mark.slow
def test_components_that_no_family_uses_may_lack_their_class_or_folder(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]  # gone in transformers 5
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "feature_extractor").mkdir()
    (folder / "model_index.json").write_text(json.dumps(index))
    load_all(folder)
    assert "StableDiffusionPipeline" in describe(str(folder))
    assert load_for_eval(folder, CPU, torch.float32).feature_extractor is None


@pytest.mark.slow
def test_models_that_threads_load_at_once_keep_their_tied_weights(tmp_path):
    """transformers replaces functions of its classes while it loads a model."""
    config = T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=1)
    T5EncoderModel(config).save_pretrained(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_network(T5EncoderModel, tmp_path), range(12)))
    for model in (*loaded, T5EncoderModel(config)):
        assert model.encoder.embed_tokens.weight is model.shared.weight
