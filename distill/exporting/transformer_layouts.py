"""The original tensor names of the transformers of Stable Diffusion 3 and Flux.1; see `single_file`."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Places = Mapping[str, tuple[str, tuple[str, ...]]]
QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}


def sd3_layout(weights: Mapping[str, Tensor]) -> Weights:
    """An SD3Transformer2DModel's weights with the names of MMDiT."""
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    places = {
        "attn.to_q": ("x_block.attn.qkv", QKV),
        "attn2.to_q": ("x_block.attn2.qkv", QKV),
        "attn.add_q_proj": ("context_block.attn.qkv", ADDED),
    }
    renamed: Weights = {}
    for name, value in weights.items():
        found = re.match(r"transformer_blocks\.(\d+)\.(.*)", name)
        if found is None:
            renamed[_renamed(name, SD3)] = _swap_halves(value) if name.startswith("norm_out.") else value
            continue
        joined = _joined(weights, name, places)
        if joined is None and re.search(r"\.(to|add)_[kv](_proj)?\.", name):
            continue
        new, tensor = joined or (_renamed(found[2], SD3_BLOCK), value)
        swapped = int(found[1]) == last and "norm1_context" in name
        renamed[f"joint_blocks.{found[1]}.{new}"] = _swap_halves(tensor) if swapped else tensor
    return renamed


def flux_layout(weights: Mapping[str, Tensor]) -> Weights:
    """A FluxTransformer2DModel's weights with the names of Black Forest Labs."""
    renamed: Weights = {}
    for name, value in weights.items():
        found = re.match(r"(single_)?transformer_blocks\.(\d+)\.(.*)", name)
        if found is None:
            renamed[_renamed(name, FLUX)] = _swap_halves(value) if name.startswith("norm_out.") else value
            continue
        if found[1]:
            places: Places = {"attn.to_q": ("linear1", (*QKV, "proj_mlp"))}
            block, names = "single_blocks", FLUX_SINGLE
        else:
            places = {"attn.to_q": ("img_attn.qkv", QKV), "attn.add_q_proj": ("txt_attn.qkv", ADDED)}
            block, names = "double_blocks", FLUX_DOUBLE
        joined = _joined(weights, name, places)
        if joined is None and re.search(r"\.((to|add)_[kv](_proj)?|proj_mlp)\.", name):
            continue
        new, tensor = joined or (_renamed(found[3], names), value)
        renamed[f"{block}.{found[2]}.{new}"] = tensor
    return renamed


def _joined(weights: Mapping[str, Tensor], name: str, places: Places) -> tuple[str, Tensor] | None:
    """The name within its block and the value of a matrix that joins several, if `name` is the first of them."""
    for first, (new, parts) in places.items():
        head, found, end = name.partition(f".{first}.")
        if found:
            attention, _, own = first.partition(".")
            rows = [
                f"{head}.{part}.{end}" if part == "proj_mlp" else f"{head}.{attention}.{part}.{end}" for part in parts
            ]
            assert own == parts[0]
            return f"{new}.{end}", torch.cat([weights[row] for row in rows])
    return None


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    raise ValueError(f"the original layout of this transformer has no name for {name}")


def _swap_halves(value: Tensor) -> Tensor:
    """Shift before scale, as in the original; diffusers has scale before shift."""
    scale, shift = value.chunk(2)
    return torch.cat([shift, scale])
