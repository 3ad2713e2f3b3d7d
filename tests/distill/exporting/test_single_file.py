"""Files in the original layout: names as diffusers reads them, the same weights after a round trip, the same images."""

import re

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file

from benchmarks.wild.teachers import tiny_pipeline
from distill.exporting.single_file import original_layout, unet_layout, write_single_file
from distill.exporting.transformer_layouts import flux_layout, sd3_layout
from tests.teachers.tiny_pipelines import WIDTH, unet

NAMES = ["Stable Diffusion 1.5", "Stable Diffusion 2.1 (v, zero SNR)", "Stable Diffusion XL", "Stable Diffusion 3.5"]


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory):
    """Function name -> a tiny pipeline whose text encoders differ in width, as the real ones."""
    return lambda name: tiny_pipeline(name, tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_read_back_by_diffusers_has_the_same_weights(name, pipeline_of, tmp_path):
    pipe = pipeline_of(name)
    pipe.save_pretrained(tmp_path / "folder")
    write_single_file(pipe, tmp_path / "model.safetensors")
    again = type(pipe).from_single_file(tmp_path / "model.safetensors", config=str(tmp_path / "folder"))
    for part in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        module = pipe.components.get(part)
        if module is None:
            continue
        stored, read = module.state_dict(), again.components[part].state_dict()
        assert stored.keys() == read.keys()
        assert all(torch.equal(stored[key], read[key]) for key in stored), part


def reads(converter, weights, *more):
    """What a converter of diffusers makes of a checkpoint, and the names that it did not read."""
    left = dict(weights)
    return converter(left, *more), left


TRANSFORMERS = {
    "sd3": (
        lambda: SD3Transformer2DModel(
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            pos_embed_max_size=4,
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        sd3_layout,
        single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    ),
    "flux": (  # the reader takes the width of Flux.1 only
        lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True),
        flux_layout,
        single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.first_is_quick
def test_transformers_have_the_names_that_diffusers_reads(name, prefix):
    """All names are read, none is left, and every tensor comes back. Two columns of each matrix are enough."""
    build, layout, converter = TRANSFORMERS[name]
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build().state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    narrow = name == "flux"
    weights = {
        key: torch.randn(shape[:1] + (2,) * (len(shape) - 1) if narrow else shape, generator=rng)
        for key, shape in shapes.items()
    }
    found, left = reads(converter, {f"{prefix}{key}": value for key, value in layout(weights).items()})
    assert not left
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_names_are_those_of_the_published_checkpoints(pipeline_of):
    """A few names by heart, of the files on the Hub, so that reader and writer cannot agree on wrong ones."""
    names = set(original_layout(pipeline_of("Stable Diffusion 1.5")))
    assert {
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.encoder.down.0.block.0.norm1.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
    } <= names
    assert not any("cond_proj" in name or re.search(r"down_blocks|up_blocks|mid_block", name) for name in names)


@pytest.mark.slow
def test_the_real_layout_of_stable_diffusion_is_complete():
    """Every tensor of Stable Diffusion 1.5's UNet has another name; the numbers of blocks are those of the original."""
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    names = unet_layout(network.state_dict(), 2)
    assert len(names) == len(network.state_dict()) == 686
    assert "output_blocks.11.0.skip_connection.weight" in names and "input_blocks.11.0.out_layers.3.bias" in names
    assert "output_blocks.2.1.conv.weight" in names and "output_blocks.5.2.conv.weight" in names
    again, _ = reads(
        single_file_utils.convert_ldm_unet_checkpoint,
        {f"model.diffusion_model.{key}": value for key, value in names.items()},
        dict(network.config),
    )
    assert again.keys() == network.state_dict().keys()


@pytest.mark.slow
def test_what_the_layout_cannot_hold_is_refused(pipeline_of, tmp_path):
    pipe = pipeline_of("Stable Diffusion 1.5")
    pipe.register_modules(unet=unet(cross_attention_dim=WIDTH, time_cond_proj_dim=8))
    with pytest.raises(ValueError, match="input for the guidance scale"):
        write_single_file(pipe, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="got a DiTPipeline"):
        original_layout(pipeline_of("DiT"))
    tiny = pipeline_of("Stable Diffusion 1.5")
    tiny.register_modules(vae=diffusers.AutoencoderTiny())
    with pytest.raises(ValueError, match="single-file needs a pipeline with an AutoencoderKL, got an AutoencoderTiny"):
        original_layout(tiny)
    broken = pipeline_of("Stable Diffusion 3.5")
    with torch.no_grad():
        broken.text_encoder.text_projection.weight.add_(1)
    with pytest.raises(ValueError, match="text_projection of text_encoder must be the identity"):
        original_layout(broken)


@pytest.mark.parametrize(("zero_snr", "keys"), [(False, {"v_pred"}), (True, {"v_pred", "ztsnr"})])
@pytest.mark.slow
def test_the_file_of_an_xl_model_says_what_comfyui_cannot_guess(zero_snr, keys, pipeline_of, tmp_path):
    pipe = pipeline_of("Stable Diffusion XL")
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    pipe.scheduler = diffusers.DDIMScheduler(**betas, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr)
    write_single_file(pipe, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() & {"v_pred", "ztsnr"} == keys


@pytest.mark.slow
def test_flux_checkpoints_have_the_encoders_and_the_autoencoder(pipeline_of, tmp_path):
    write_single_file(pipeline_of("Flux.1 dev"), tmp_path / "model.safetensors")
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {
        "model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale",
        "model.diffusion_model.single_blocks.0.linear1.weight",
        "vae.decoder.conv_in.weight",
        "text_encoders.t5xxl.transformer.shared.weight",
        "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight",
    } <= names
