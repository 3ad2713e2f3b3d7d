"""Other forms of an exported pipeline: half precision, shards, one file, LoRA keys of other tools, ONNX."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.exporting.comfy import workflow
from distill.exporting.hub import CARD
from distill.exporting.model_card.front_ends import named
from distill.exporting.model_card.gallery import FOLDER as GALLERY
from distill.exporting.pipeline import LORA
from distill.exporting.single_file import check_layout, write_single_file
from distill.exporting.verify import load_exported
from eval.pipelines.loading import check_pipeline
from eval.pipelines.signatures import pipeline_class
from teachers.loading.record import read_record, write_record
from teachers.loading.saving import save_pipeline
from teachers.support.files import atomic_write
from teachers.support.regular import outside_links
from teachers.support.text import read_text

LORA_FILE = f"{LORA}/pytorch_lora_weights.safetensors"
LOADS_HALF = ', variant="fp16", torch_dtype=torch.float16'  # more arguments of `from_pretrained`
KOHYA = {"unet": "lora_unet", "transformer": "lora_transformer", "text_encoder": "lora_te"}


@dataclass(frozen=True)
class Form:
    """How a pipeline is written.

    Attributes:
        half: Whether the weights are float16.
        shard: `max_shard_size` of `save_pretrained`, such as "5GB"; None: its default.
    """

    half: bool = False
    shard: str | None = None


def check_form(pipeline: Path, out: Path, form: str, how: Form) -> None:
    """Check what can be checked before the pipeline exists.

    Args:
        pipeline: The folder of an exported pipeline, which may not exist yet.
        out: The folder or the file to write; it must not exist.
        form: One of `FORMATS`.
        how: Precision and shards.

    Raises:
        ValueError: If `out` exists, is in the pipeline or has the wrong ending, or `how` does not fit `form`.
    """
    if out.exists():
        raise ValueError(f"OUT must not exist yet, got {out}; choose another path")
    if out.resolve().is_relative_to(pipeline.resolve()):
        raise ValueError(f"OUT must be outside the exported pipeline {pipeline}, got {out}")
    if how.shard is not None and form != "diffusers":
        raise ValueError(f"--max-shard-size needs --format diffusers, got {form}")
    if how.shard is not None and not re.fullmatch(r"[1-9]\d*[KMGT]B", how.shard):
        raise ValueError(
            f'--max-shard-size must be a whole number with KB, MB, GB or TB, such as 2GB, got "{how.shard}"'
        )
    suffix = {"single-file": ".safetensors", "lora": ".safetensors"}.get(form)
    if suffix and out.suffix != suffix:
        raise ValueError(f"OUT must be a {suffix} file with --format {form}, got {out.name}")
    if how.half and form == "onnx":
        raise ValueError("--variant fp16 cannot be combined with --format onnx; convert the models with onnxruntime")


def convert(pipeline: Path, out: Path, form: str, how: Form) -> list[Path]:
    """Write an exported pipeline in another form.

    Args:
        pipeline: The folder of an exported pipeline.
        out: The folder or the file to write; see `check_form`.
        form: One of `FORMATS`.
        how: Precision and shards.

    Returns:
        What was written.

    Raises:
        ValueError: If `check_form` raises one, the pipeline cannot have that form, or its files have changed since the
            export.
    """
    check_form(pipeline, out, form, how)
    check_pipeline(pipeline)
    if found := outside_links(pipeline):
        raise ValueError(f"{found[0]} is a link out of the folder or a special file; remove it first")
    record = read_record(pipeline)
    out.parent.mkdir(parents=True, exist_ok=True)
    return FORMATS[form](pipeline, out, record, how)


def load_pipeline(pipeline: Path, how: Form = Form(), safety_checker: bool = False) -> Any:
    """An exported pipeline on the CPU, in the precision of `how`, with its safety checker if that is wanted."""
    pipe = load_exported(pipeline_class(pipeline), pipeline, torch.device("cpu"), safety_checker)
    return pipe.to(torch.float16) if how.half else pipe


def write_diffusers(pipeline: Path, out: Path, record: Mapping[str, Any], how: Form) -> list[Path]:
    """A copy of a pipeline's folder in another precision, or with smaller files."""
    options: dict[str, Any] = {"variant": "fp16"} if how.half else {}
    if how.shard is not None:
        options["max_shard_size"] = how.shard
    with atomic_write(out) as temporary:
        pipe = load_pipeline(pipeline, how, safety_checker=True)
        if how.half:
            pipe.save_pretrained(temporary, safe_serialization=True, **options)
        else:
            save_pipeline(pipe, temporary, **options)
        for name in (CARD, *(file.name for file in pipeline.glob("*_prompts.txt"))):
            if (pipeline / name).is_file():
                shutil.copyfile(pipeline / name, temporary / name)
        for name in (LORA, GALLERY):  # the card links to the samples
            if (pipeline / name).is_dir():
                shutil.copytree(pipeline / name, temporary / name)
        if (temporary / CARD).is_file():
            text = read_text(temporary / CARD)
            if LOADS_HALF in text:  # the pipeline is a half-precision copy itself
                text = text.replace(LOADS_HALF, "").replace("```python\nimport torch\nfrom ", "```python\nfrom ", 1)
            if how.half:
                name = re.escape(named(text))  # of an uploaded card: the model on the Hub
                text = re.sub(rf'((?:Pipeline|Model)\.from_pretrained\("{name}")', rf"\1{LOADS_HALF}", text)
                text = text.replace("```python\nfrom ", "```python\nimport torch\nfrom ", 1)
            (temporary / CARD).write_text(text, encoding="utf-8")
        write_record(temporary, {key: value for key, value in record.items() if key not in ("files", "sha256")})
    return [out]


def write_original(pipeline: Path, out: Path, record: Mapping[str, Any], how: Form) -> list[Path]:
    """One file in the original layout, and beside it a workflow for ComfyUI."""
    pipe = load_pipeline(pipeline, how)
    check_layout(pipe)
    text = json.dumps(workflow(pipe, record, out.name), indent=2) + "\n"  # before anything is written
    write_single_file(pipe, out)
    steps = out.with_suffix(".comfyui.json")
    with atomic_write(steps) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [out, steps]


def kohya_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers LoRA file's weights with the names of kohya's scripts, which ComfyUI and A1111 read.

    Args:
        weights: `{component}.{layer}.lora_A.weight` (rank, inputs, ...) and `.lora_B.weight` (outputs, rank, ...).

    Returns:
        `lora_unet_{layer with _ for .}.lora_down.weight`, `.lora_up.weight`, and `.alpha`, which is the rank.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        component, _, layer = name.partition(".")
        layer, _, side = layer.removesuffix(".weight").rpartition(".")
        if component not in KOHYA or side not in ("lora_A", "lora_B"):
            raise ValueError(f"a LoRA file must have lora_A and lora_B of a unet or transformer, got {name}")
        stem = f"{KOHYA[component]}_{layer.replace('.', '_')}"
        renamed[f"{stem}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value
        if side == "lora_A":
            renamed[f"{stem}.alpha"] = torch.tensor(float(len(value)))
    return renamed


def write_lora(pipeline: Path, out: Path, record: Mapping[str, Any], how: Form) -> list[Path]:
    """The student's LoRA file with kohya's names."""
    source = pipeline / LORA_FILE
    if not source.is_file():
        raise ValueError(
            f"--format lora needs a student that was trained with memory.tier=lora; {pipeline} has no {LORA_FILE}"
        )
    weights = kohya_layout(load_file(source))
    weights = {key: (value.half() if how.half else value).contiguous() for key, value in weights.items()}
    with atomic_write(out) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    return [out]


def write_onnx(pipeline: Path, out: Path, record: Mapping[str, Any], how: Form) -> list[Path]:
    """A folder of ONNX models."""
    from distill.exporting.onnx import write_onnx_folder

    with warnings.catch_warnings(), atomic_write(out) as temporary:
        warnings.filterwarnings("ignore")  # of tracing
        write_onnx_folder(load_pipeline(pipeline), pipeline, temporary)
    return [out]


FORMATS: dict[str, Callable[[Path, Path, Mapping[str, Any], Form], list[Path]]] = {
    "diffusers": write_diffusers,
    "single-file": write_original,
    "lora": write_lora,
    "onnx": write_onnx,
}
