"""LoRA files of transformers: fused as their formats say, and refused if a part of them would be ignored."""

import pytest
import torch
from safetensors.torch import save_file

from teachers.loading.lora_files import Lora
from teachers.loading.lora_loading import load_lora
from teachers.loading.loras import fuse
from tests.teachers.tiny_flow_transformers import chroma, z_image
from tests.teachers.tiny_flows import BUILDERS, qwen_image

RANK, ALPHA = 3, 6.0


def pairs(network) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random down (r, in) and up (out, r) matrices for the attention of every block."""
    generator = torch.Generator().manual_seed(1)
    layers = {n: m for n, m in network.named_modules() if n.endswith((".to_q", ".to_v", ".to_out.0"))}
    return {
        name: (torch.randn(RANK, m.in_features, generator=generator), torch.randn(m.out_features, RANK))
        for name, m in layers.items()
    }


def diffusers_keys(found, prefix="transformer."):
    ends = ("lora_A.weight", "lora_B.weight")
    return {f"{prefix}{name}.{end}": part for name, both in found.items() for end, part in zip(ends, both, strict=True)}


def comfy_keys(found):
    return diffusers_keys(found, "diffusion_model.")


def kohya_keys(found):
    keys = {}
    for name, (down, up) in found.items():
        layer = f"lora_unet_{name.replace('.', '_')}"
        parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}
        keys |= {f"{layer}.{part}": value for part, value in parts.items()}
    return keys


def stored(tensors, file):
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    return file


@pytest.mark.parametrize(("build", "write", "scale"), [
    (qwen_image, diffusers_keys, 1.0),
    (qwen_image, kohya_keys, ALPHA / RANK),
    (z_image, comfy_keys, 1.0),
    (z_image, kohya_keys, ALPHA / RANK),
    (chroma, diffusers_keys, 1.0),
])  # fmt: skip
@pytest.mark.first_is_quick
def test_transformers_are_fused_in_every_format(build, write, scale, tmp_path):
    torch.manual_seed(0)
    pipe = build()
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    found = pairs(pipe.transformer)
    assert len(found) > 4
    assert fuse(pipe, Lora(str(stored(write(found), tmp_path / "lora.safetensors"))), "transformer") == {"transformer"}
    for name, value in pipe.transformer.state_dict().items():
        down, up = found.get(name.removesuffix(".weight"), (None, None))
        change = 0 if down is None else scale * up @ down
        torch.testing.assert_close(value, before[name] + change, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ("half", r"it has no tensor for transformer\.transformer_blocks\.0\.attn\.to_q\.lora_B\.weight; get the complete"),
    ("bias", r"it has no tensor for transformer\..*\.lora_B\.bias"),
    ("layer", r"no layer takes transformer\.transformer_blocks\.7\.attn\.to_q\.lora_A\.weight"),
])  # fmt: skip
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.first_is_quick
def test_a_file_that_would_be_fused_in_part_is_refused(change, message, values, tmp_path):
    pipe = qwen_image()
    tensors = diffusers_keys(pairs(pipe.transformer))
    up = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    if change == "half":
        del tensors[up]
    elif change == "bias":
        tensors[up.replace("weight", "bias")] = torch.ones(len(tensors[up]))
    else:
        tensors |= {k.replace("blocks.0", "blocks.7"): v.clone() for k, v in tensors.items() if "0.attn.to_q" in k}
    file = stored(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=rf"the LoRA file .*lora\.safetensors does not fit .*{message}"):
        load_lora(pipe.to("cpu" if values else "meta"), file, "transformer", values)


def test_a_file_of_which_no_layer_takes_anything_is_refused(tmp_path):
    pipe = BUILDERS["Flux.2 klein"][1](None)
    file = stored(kohya_keys(pairs(pipe.transformer)), tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"lora\.safetensors does not fit .*no layer takes lora_unet_"):
        load_lora(pipe, file, "transformer")


def test_tensors_that_a_converter_leaves_out_are_named(tmp_path):
    """Those of a text encoder beside keys of diffusers."""
    pipe = chroma()
    tensors = diffusers_keys(pairs(pipe.transformer))
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    more = {f"{text}.lora_down.weight": torch.ones(RANK, 8), f"{text}.lora_up.weight": torch.ones(8, RANK)}
    load_lora(pipe, stored(tensors, tmp_path / "lora.safetensors"), "transformer")
    pipe.unload_lora_weights()
    with pytest.raises(ValueError, match=rf"diffusers leaves out {text}\.lora_down\.weight"):
        load_lora(pipe, stored(tensors | more, tmp_path / "more.safetensors"), "transformer")


def test_an_error_of_the_converter_is_a_sentence(tmp_path, monkeypatch):
    """One that occurs only when the tensors that it leaves out are looked for."""
    pipe = qwen_image()
    file = stored(kohya_keys(pairs(pipe.transformer)), tmp_path / "lora.safetensors")
    convert = type(pipe).lora_state_dict

    def failing(source, **options):
        if isinstance(source, dict):
            raise KeyError("alpha")
        return convert(source, **options)

    monkeypatch.setattr(type(pipe), "lora_state_dict", staticmethod(failing))
    with pytest.raises(
        ValueError, match=r"the LoRA file .*lora\.safetensors does not fit the QwenImagePipeline .*alpha"
    ):
        load_lora(pipe, file, "transformer")
