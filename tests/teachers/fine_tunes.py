"""Random fine-tunes of tiny pipelines, in the formats that people publish."""

from pathlib import Path

import peft
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

NETWORK = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
ENCODER = ["q_proj", "v_proj"]


def adapted(pipe, targets=NETWORK, encoders=False, seed=5):
    """Add random adapters to a pipeline's UNet, and to its text encoder."""
    torch.manual_seed(seed)
    pipe.unet.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False))
    if encoders:
        config = LoraConfig(r=2, lora_alpha=2, target_modules=ENCODER, init_lora_weights=False)
        peft.inject_adapter_in_model(config, pipe.text_encoder, "default")
        pipe.text_encoder.peft_config = {"default": config}
    return pipe


def write_diffusers(pipe, folder: Path, encoders=False) -> Path:
    """Write the adapters of `adapted` as `save_lora_weights` does."""
    parts = {"unet": pipe.unet} | ({"text_encoder": pipe.text_encoder} if encoders else {})
    weights = {f"{name}_lora_layers": get_peft_model_state_dict(part) for name, part in parts.items()}
    type(pipe).save_lora_weights(folder, **weights, **_collate_lora_metadata(parts))
    return folder / "pytorch_lora_weights.safetensors"


def write_kohya(pipe, file: Path) -> Path:
    """Write the UNet's adapters with kohya's names, ranks and alphas."""
    state = {f"unet.{name}": value for name, value in get_peft_model_state_dict(pipe.unet).items()}
    kohya = convert_state_dict_to_kohya(state)
    for name in [name for name in kohya if name.endswith("lora_down.weight")]:
        kohya[name.replace("lora_down.weight", "alpha")] = torch.tensor(
            float(pipe.unet.peft_config["default"].lora_alpha)
        )
    save_file({name: value.contiguous() for name, value in kohya.items()}, file)
    return file


def write_peft(pipe, folder: Path) -> Path:
    """Write the UNet's adapters as peft's own save_pretrained does."""
    folder.mkdir()
    pipe.unet.peft_config["default"].save_pretrained(folder)
    state = {f"base_model.model.{k}": v.contiguous() for k, v in get_peft_model_state_dict(pipe.unet).items()}
    save_file(state, folder / "adapter_model.safetensors")
    return folder
