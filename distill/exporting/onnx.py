"""ONNX models of an exported Stable Diffusion pipeline, one in each folder.

    text_encoder/model.onnx   input_ids -> embeddings
    text_encoder_2/model.onnx of Stable Diffusion XL
    unet/model.onnx           sample, timestep, encoder_hidden_states (text_embeds, time_ids) -> out_sample
    vae_decoder/model.onnx    latent_sample -> sample

The scheduler, the tokenizers and `model_index.json` are copied as they are.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


class Unet(nn.Module):
    """The UNet with positional inputs."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *added: Tensor) -> Tensor:
        more = {"added_cond_kwargs": dict(zip(("text_embeds", "time_ids"), added, strict=True))} if added else {}
        output: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False, **more)[0]
        return output


class Decoder(nn.Module):
    """The autoencoder's decoder."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        output: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return output


class Encoder(nn.Module):
    """A text encoder: for Stable Diffusion its last layer, for XL the last but one and the pooled embedding."""

    def __init__(self, encoder: Any, penultimate: bool) -> None:
        super().__init__()
        self.encoder, self.penultimate = encoder, penultimate

    def forward(self, input_ids: Tensor) -> Any:
        output = self.encoder(input_ids, output_hidden_states=self.penultimate)
        return (output[0], output.hidden_states[-2]) if self.penultimate else output[0]


def write_onnx_folder(pipe: Any, source: Path, folder: Path) -> None:
    """Write the ONNX models of a pipeline.

    Args:
        pipe: The pipeline, in float32 on the CPU.
        source: Its folder.
        folder: The folder to write.

    Raises:
        ValueError: If its class is not supported, or the package onnx is not installed.
    """
    kind = type(pipe).__name__
    if kind not in KINDS:
        raise ValueError(f"--format onnx needs one of {', '.join(KINDS)}, got a {kind}")
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ValueError('--format onnx needs onnx and onnxscript: pip install "fewstep[onnx]"') from error
    assert onnx.__version__ and onnxscript.__version__
    folder.mkdir()
    config, double = pipe.unet.config, "XL" in kind
    height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    batch = 2  # the first dimension is dynamic; 1 would be taken as a constant
    length, side = pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim
    latent = torch.zeros(batch, config.in_channels, height, width)
    ids = torch.ones(batch, length, dtype=torch.long)
    inputs = {
        "sample": latent,
        "timestep": torch.tensor([999.0]),
        "encoder_hidden_states": torch.zeros(batch, length, side),
    }
    if double:
        pooled = pipe.text_encoder_2.config.projection_dim
        inputs |= {"text_embeds": torch.zeros(batch, pooled), "time_ids": torch.zeros(batch, 6)}
    _write(Unet(pipe.unet), inputs, ["out_sample"], folder / "unet", pipe.unet)
    _write(Decoder(pipe.vae), {"latent_sample": latent}, ["sample"], folder / "vae_decoder", pipe.vae)
    for name in ("text_encoder", "text_encoder_2")[: 1 + double]:
        encoder = getattr(pipe, name)
        outputs = ["text_embeds", "hidden_states"] if double else ["last_hidden_state"]
        _write(Encoder(encoder, double), {"input_ids": ids}, outputs, folder / name, encoder)
    for name in ("scheduler", "tokenizer", "tokenizer_2"):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    shutil.copyfile(source / "model_index.json", folder / "model_index.json")


@torch.no_grad()
def _write(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], folder: Path, part: Any) -> None:
    """Write a module as `folder`/model.onnx, with a dynamic batch size."""
    folder.mkdir()
    batch = torch.export.Dim("batch", min=1, max=1024)
    dynamic = tuple(None if name == "timestep" else {0: batch} for name in inputs)
    shapes: Any = (*dynamic[:3], dynamic[3:]) if len(dynamic) > 3 else dynamic
    torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        str(folder / "model.onnx"),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    part.save_config(folder) if hasattr(part, "save_config") else part.config.save_pretrained(folder)
