"""Export a student as a diffusers pipeline with `distill.json` and a model card."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from distill.config.recipe import Recipe
from distill.config.run_files import PIPELINE
from distill.data.dataset import Dataset
from distill.exporting.card import model_card
from distill.exporting.distill_json import (
    EVALUATION_PROMPTS,
    PROMPTS,
    data_record,
    describe,
    device_name,
    evaluation_prompts,
)
from distill.exporting.model_card.gallery import Gallery, draw
from distill.exporting.model_card.gallery import write as write_gallery
from distill.exporting.model_card.metadata import teacher_metadata
from distill.exporting.model_card.sections import ignored_arguments
from distill.exporting.safety import DROPPED, add_safety_checker, without_checker
from distill.exporting.source_files import EVALUATION_SOURCES, evaluation_sources, write_sources
from distill.exporting.verify import (
    TOLERANCE,
    check_finite,
    differences,
    load_exported,
    on_device,
    promised_calls,
    refuse,
    stored_without,
)
from distill.training.engine import Engine
from distill.training.features import choose_features
from distill.training.held_out import HeldOut
from distill.training.state import TrainState
from eval.pipelines.jobs import steps_text
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher
from teachers.loading.contents import stored_files
from teachers.loading.embedded import EMBEDDED
from teachers.loading.notices import without_notices
from teachers.loading.prompts import read_prompts
from teachers.loading.record import read_record, write_record
from teachers.loading.saving import save_pipeline
from teachers.networks.adapters import Adapted
from teachers.support.files import atomic_write
from teachers.support.locks import replaced

LORA = "lora"  # in the pipeline's folder, if the student is a LoRA adapter


def export(
    run: Path,
    teacher: Teacher,
    student: Denoiser,
    times: Sequence[float],
    record: dict[str, Any],
    captions: Sequence[str],
    prompts: Sequence[str] = (),
    samples: Gallery | None = None,
    safety_checker: bool = True,
    sources: Iterator[tuple[str, Tensor]] | None = None,
) -> Path:
    """Write a student as a stock diffusers pipeline, atomically. Waits while other processes read the present one.

    Args:
        run: The run's folder; the pipeline is written to its subfolder `pipeline`.
        teacher: The teacher, which builds the pipeline.
        student: The student.
        times: Decreasing angles of its sampling steps, in radians; `record` has those that are exported.
        record: The contents of `distill.json`, from `describe`.
        captions: The distinct training captions. They are stored if the recipe has no other prompts for evaluation.
        prompts: The prompts of the evaluation, if the recipe names a file of them; they are stored.
        samples: Samples for the model card.
        safety_checker: Whether the teacher's safety checker is part of the pipeline.
        sources: Instructions and source images of the evaluation, which are stored; None for other teachers.

    Returns:
        The pipeline's folder.

    Raises:
        ValueError: If the student's weights are not finite, or the pipeline or the LoRA file does not give the
            student's images; `run/pipeline` is then unchanged.
    """
    final = run / PIPELINE
    check_finite(student)
    with replaced(final), atomic_write(final) as temporary:
        kind, scheduler, record = write_and_check(temporary, teacher, student, record, captions, safety_checker)
        stored = {PROMPTS: captions, EVALUATION_PROMPTS: prompts}.get(record["evaluation"]["prompts"])
        named = record["evaluation"]["prompts"]
        if named == EVALUATION_PROMPTS or named in EMBEDDED:
            shared = len(set(read_prompts(named) if named in EMBEDDED else prompts) & set(captions))
            record = record | {"evaluation": record["evaluation"] | {"shared_with_training": shared}}
        if stored is not None:
            lines = "".join(f"{' '.join(prompt.split())}\n" for prompt in stored)
            (temporary / record["evaluation"]["prompts"]).write_text(lines, encoding="utf-8")
        if sources is not None:
            write_sources(sources, temporary / EVALUATION_SOURCES)
        widgets = [] if samples is None else write_gallery(samples, teacher.medium, temporary)
        write_record(temporary, record)
        card = model_card(record, kind, scheduler.__name__, teacher, list(stored_without(kind, temporary)), widgets)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return final


def write_and_check(
    folder: Path,
    teacher: Teacher,
    student: Denoiser,
    record: dict[str, Any],
    captions: Sequence[str],
    safety_checker: bool,
) -> tuple[type[DiffusionPipeline], type[Any], dict[str, Any]]:
    """Write a student's pipeline and its LoRA file into a folder, and compare both with the student.

    Args:
        folder: The folder.
        teacher: The teacher, which builds the pipeline.
        student: The student.
        record: The contents of `distill.json`, from `describe`.
        captions: Prompts; the first ones are used.
        safety_checker: Whether the teacher's safety checker is part of the pipeline.

    Returns:
        The class of the pipeline, the class of its scheduler, and `record` with what the pipeline turned out to be.

    Raises:
        ValueError: If the pipeline or the LoRA file does not give the student's images.
    """
    times = record["times"]
    pipeline = teacher.pipeline(student, times)
    kind, scheduler = type(pipeline), type(pipeline.scheduler)
    save_pipeline(pipeline, folder)
    del pipeline
    if ignored := ignored_arguments(kind):
        record = record | {"ignored_arguments": ignored}
    record = record | {"safety_checker": add_safety_checker(teacher, folder, safety_checker)}
    if isinstance(student.network, Adapted) and teacher.save_lora(student, times, folder / LORA):
        parts = [times[: entry["num_steps"]] for entry in record["calls"]]
        calls = [
            {**entry, "call": teacher.lora_call(len(part), part) | teacher.timesteps_call(student, part)}
            for entry, part in zip(record["calls"], parts, strict=True)
        ]
        record = record | {"lora": {"folder": LORA, "calls": calls}}
    return kind, scheduler, record | {"checked": check_export(folder, kind, teacher, student, record, captions)}


def check_export(
    folder: Path,
    kind: type[DiffusionPipeline],
    teacher: Teacher,
    student: Denoiser,
    record: dict[str, Any],
    captions: Sequence[str],
) -> dict[str, Any]:
    """Compare an exported pipeline, and its LoRA file, with the student; see `distill.exporting.verify`.

    Args:
        folder: The pipeline's folder.
        kind: The class of the pipeline.
        teacher: The teacher.
        student: The student.
        record: The contents of `distill.json`.
        captions: Prompts; the first ones are used.

    Returns:
        The largest difference, the numbers of steps, and the tolerance.

    Raises:
        ExportMismatch: If a difference is above the tolerance.
    """
    device, times = next(student.parameters()).device, record["times"]
    scales = record["options"].get("guidances", ()) if student.guidance_input else ()
    kept = "the checkpoints of the run are unchanged"
    pipe = load_exported(kind, folder, device)
    worst = differences(pipe, teacher, student, times, promised_calls(record["calls"], scales), captions or [""])
    refuse(worst, "the exported pipeline", kept)
    checked = {"difference": max(worst.values()), "steps": list(worst), "tolerance": TOLERANCE}
    if "lora" in record:
        pipe = lora_pipeline(kind, folder, teacher, student)
        pipe.load_lora_weights(folder / LORA, use_safetensors=True)
        calls = record["lora"]["calls"]
        worst = differences(on_device(pipe, device), teacher, student, times, calls, captions or [""])
        refuse(worst, "the LoRA file on the teacher's pipeline", kept)
        checked["lora_difference"] = max(worst.values())
    return checked


def lora_pipeline(kind: type[DiffusionPipeline], folder: Path, teacher: Teacher, student: Denoiser) -> Any:
    """The teacher's stock pipeline with the student's scheduler, in float32, to load the student's LoRA file into."""
    assert isinstance(student.network, Adapted)
    base = Adapted(student.network.lora_base).merged_copy()  # without an adapter: the teacher's own network
    options = {teacher.network: base, **stored_without(kind, folder), **without_checker(kind)}
    with without_notices():
        return kind.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, **options)


def export_student(
    recipe: Recipe,
    state: TrainState,
    teacher: Teacher,
    dataset: Dataset,
    held_out: HeldOut | None,
    engine: Engine,
    exported_step: int,
    run: str,
) -> Path:
    """Choose the student's sampling schedule and export its EMA. Every process calls it.

    Args:
        recipe: The run's recipe.
        state: The trained state.
        teacher: The run's teacher, which builds the pipeline.
        dataset: The run's data, for its captions.
        held_out: Evaluates candidate schedules on held-out samples; None on processes that do not evaluate.
        engine: The run's engine.
        exported_step: The training step of the EMA in `state`.
        run: The run's key, from `run_key`.

    Returns:
        The pipeline's folder.
    """
    times = held_out.select_schedule(state.distiller, state.ema) if held_out else []
    student = engine.unsharded(state.ema)
    if not engine.is_main:
        return recipe.folder / PIPELINE
    if state.step == 0:
        student = teacher.student()  # untrained: an unchanged copy of the teacher
    trained = max(state.step, exported_step)  # a killed run's best EMA can be newer than its last checkpoint
    cost = {
        "steps": trained,
        "exported_step": exported_step,
        "seconds": round(state.seconds, 1),
        "samples": trained * recipe.train.batch_size,
        "device": device_name(engine.device),
        **({"ema_half_life": state.half_life} if state.half_lives else {}),
    }
    record = describe(recipe, teacher, state.distiller, student, times, cost, choose_features(recipe, teacher.medium))
    record["teacher"]["contents"] = stored_files(dataset.teacher or {})
    record["run"] = run
    if held_out is not None and held_out.candidates:
        record["candidates"] = held_out.candidates
    record["teacher"]["card"] = teacher_metadata(recipe.teacher.path or "")
    record["data"] = data_record(recipe, dataset)
    prompts, samples = evaluation_prompts(recipe, record), card_samples(recipe, teacher, student, record["times"])
    keep = recipe.export.safety_checker
    sources = evaluation_sources(recipe, teacher) if teacher.source else None
    final = export(recipe.folder, teacher, student, times, record, dataset.captions, prompts, samples, keep, sources)
    stored = read_record(final)
    if stored["safety_checker"] == DROPPED:
        print("the pipeline has no safety checker (export.safety_checker=false); its model card says so")
    if "negative_prompt" in stored.get("ignored_arguments", ()):
        baked = " (teacher.negative_prompt is part of the weights)" * (recipe.teacher.negative_prompt is not None)
        print(f"negative_prompt in a call of the pipeline has no effect{baked}; its model card says so")
    counts, gap = " and ".join(map(steps_text, stored["checked"]["steps"])), stored["checked"]["difference"]
    print(f"export checked at {counts}: its samples differ from the student's by at most {gap:.1e}")
    print(f"the student's pipeline: {final}")
    return final


def card_samples(recipe: Recipe, teacher: Teacher, student: Denoiser, times: Sequence[float]) -> Gallery | None:
    """Samples for the model card; None, with a warning, if they cannot be drawn: the export must not fail for them.

    None for teachers with source images: those of the data may be confidential.
    """
    if teacher.source:
        return None
    try:
        return draw(recipe, teacher, student, times)
    except Exception as error:  # networks raise many types, such as torch's for a full memory
        warnings.warn(f"the model card has no samples ({' '.join(str(error).split())[:200]})", stacklevel=2)
        return None
