"""Tiny random teachers with real architectures, whose text encoders differ in width as the published ones do."""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModelWithProjection

from benchmarks.wild.cells import Case
from distill.config.recipe import Recipe, method_options
from distill.config.registry import TEACHERS, find
from distill.config.sections import ExportRecipe, TeacherRecipe
from distill.exporting.distill_json import describe
from distill.exporting.pipeline import export
from teachers.loading.embedded import EMBEDDED
from teachers.pocket.parts import make_tokenizer
from tests.teachers.tiny_pipelines import BUILDERS, WIDTH, unet

POCKET = "pocket teacher"  # the embedded one
WIDE = 48  # of the second text encoder
COST = {"exported_step": 0, "steps": 0, "seconds": 0.0, "samples": 0, "device": "cpu"}
METHODS: dict[str, dict[str, Any]] = {
    "DMD, 1 step": {"name": "dmd"},
    "DMD, 1 early step": {"name": "dmd", "timesteps": [700]},
    "DMD, 2 steps": {"name": "dmd", "timesteps": [999, 250]},
    "sCM": {"name": "scm"},
    "rCM": {"name": "rcm"},
}


def tiny_pipeline(name: str, folder: Path) -> Any:
    """A tiny pipeline of `tests.teachers.tiny_pipelines`, saved in `folder`/pipeline.

    Args:
        name: The published model with its architecture.
        folder: Receives the tokenizer, and the pipeline.
    """
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = BUILDERS[name][1](make_tokenizer(folder / "tokenizer"))
    if name in ("Stable Diffusion XL", "Stable Diffusion 3.5"):
        old = pipe.text_encoder_2.config
        sizes = {"hidden_size": WIDE, "intermediate_size": WIDE, "projection_dim": WIDE}
        changed = type(old)(**{**old.to_dict(), **sizes})
        pipe.register_modules(text_encoder_2=CLIPTextModelWithProjection(changed))
    if name == "Stable Diffusion XL":
        network = unet(
            cross_attention_dim=WIDTH + WIDE,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDE,
        )
        pipe.register_modules(unet=network)
    if name == "Stable Diffusion 3.5":
        with torch.no_grad():
            pipe.text_encoder.text_projection.weight.copy_(torch.eye(WIDTH))
        kind, config = type(pipe.transformer), dict(pipe.transformer.config)
        config |= {"joint_attention_dim": WIDTH + WIDE, "pooled_projection_dim": WIDTH + WIDE}
        pipe.register_modules(transformer=kind.from_config(config))
        from tests.teachers.tiny_pipelines import t5

        third, tokenizer = t5(WIDTH + WIDE)
        pipe.register_modules(text_encoder_3=third, tokenizer_3=tokenizer)
    pipe.save_pretrained(folder / "pipeline")
    return pipe


def export_case(name: str, method: str, teachers: Path, work: Path, schedule: str = "native") -> Case:
    """Export a perturbed, untrained student of a tiny teacher.

    Args:
        name: The teacher; see `tiny_pipeline`.
        method: A key of `METHODS`.
        teachers: The folder of tiny pipelines; missing ones are made.
        work: Receives the export.
        schedule: `export.schedule`.
    """
    if name == POCKET:
        family, source = "stable_diffusion", EMBEDDED["pocket"].pipeline()
    else:
        family, source = BUILDERS[name][0], teachers / name.replace(" ", "_") / "pipeline"
        if not source.exists():
            tiny_pipeline(name, source.parent)
    teacher = find(TEACHERS, family).load(str(source), torch.device("cpu"))
    recipe = Recipe("student", TeacherRecipe(path=None, family=family), METHODS[method])
    recipe.export = ExportRecipe(schedule)  # type: ignore[arg-type]
    cls, options = method_options(recipe)
    torch.manual_seed(0)
    distiller = cls(teacher, 1.0, options)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in distiller.student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    times = distiller.sampling_schedules()[0]
    record = describe(recipe, teacher, distiller, distiller.student, times, COST, "pixels")
    work.mkdir(parents=True, exist_ok=True)
    exported = export(work, teacher, distiller.student, times, record, ["a photo of a coat", "an ankle boot"])
    return Case(exported, source, teacher, distiller.student, record, work)
