"""The pipelines of the demo: a teacher and its students, loaded together and called with the same noise."""

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.pipelines.demo_requests import Request, TimedSamples, batch_arguments
from eval.pipelines.generate import arguments
from eval.pipelines.inputs import shared_medium
from eval.pipelines.latency import PeakMemory, timed
from eval.pipelines.loading import check_pipeline, load_pipeline
from eval.pipelines.locks import hold_pipelines
from eval.pipelines.machine import PRECISIONS
from eval.pipelines.networks import Pipeline, count_evaluations, network
from eval.pipelines.run_prompts import own_prompts, prompts_for
from eval.pipelines.runs import Run, read_run
from eval.pipelines.shared_settings import tuned_teacher_folder
from eval.pipelines.signatures import argument, pipeline_class, source_names, takes_prompts
from teachers.loading.embedded import EMBEDDED
from teachers.media import Video
from teachers.media.pictures import to_pil
from teachers.media.reduction import reduced
from teachers.support.errors import reading

LARGEST_CLIP = 512  # pixels of a clip's longer side on the page
MAX_SECONDS = 300.0  # of one pipeline call
MAX_TEACHER_STEPS = 4  # times the teacher's default number of steps


@dataclass(frozen=True)
class DemoPipeline:
    """A loaded pipeline with its call arguments.

    Attributes:
        name: The heading on the page.
        pipe: The pipeline.
        calls: Call arguments by number of steps.
        is_teacher: Whether any number of steps is allowed; `calls` then has the default one.
        is_student: Whether guidance is part of its weights.
    """

    name: str
    pipe: Pipeline
    calls: dict[int, dict[str, Any]]
    is_teacher: bool = False
    is_student: bool = False

    @property
    def takes_guidance(self) -> bool:
        """Whether a guidance scale can be chosen."""
        return not self.is_student and argument(type(self.pipe), "guidance_scale") is not None

    @property
    def weights(self) -> float:
        """MB of 2^20 bytes of the weights of all its networks."""
        networks = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        return sum(p.numel() * p.element_size() for part in networks for p in part.parameters()) / 2**20

    def guided(self, guidance: float | None, negative_prompt: str) -> dict[str, Any]:
        """The call arguments for a guidance scale and a negative prompt, as far as the pipeline takes them."""
        scale, negative = (argument(type(self.pipe), name) for name in ("guidance_scale", "negative_prompt"))
        chosen: dict[str, Any] = {}
        if self.takes_guidance and scale and guidance is not None:
            chosen[scale] = guidance
        if not self.is_student and negative and negative_prompt:
            chosen[negative] = negative_prompt
        return chosen

    def call(self, num_steps: int) -> tuple[int, dict[str, Any]]:
        """The available number of steps nearest to `num_steps`, and the call arguments for it."""
        if self.is_teacher:
            default_steps, default = next(iter(self.calls.items()))
            usual = "num_inference_steps"
            name = usual if usual in default else argument(type(self.pipe), usual)
            if name is None:
                return default_steps, default
            # An explicit time grid is valid for the default number of steps only.
            dropped = {"timesteps", "sigmas"} if num_steps not in self.calls else set()
            call = {k: v for k, v in default.items() if k not in dropped}
            return num_steps, call | {name: num_steps}
        nearest = min(self.calls, key=lambda steps: (abs(steps - num_steps), steps))
        return nearest, self.calls[nearest]


class Demo:
    """The teacher of the runs and the students, loaded and warmed up.

    A pipeline without a distill.json is shown like a student. If all are such pipelines, there is no teacher.

    Args:
        runs: Finished runs or pipeline folders.
        device: The device of all pipelines.
        precision: A key of `PRECISIONS`.
        max_seconds: A pipeline call that takes longer is ended.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.

    Attributes:
        pipelines: The teacher first, then the students.
        teacher_steps: The teacher's default number of steps, 0 without a teacher.
        student_steps: The numbers of steps that students were exported for.
        guidance: The usual guidance scale of the first pipeline that takes one, or None.
        takes_negative_prompt: Whether a pipeline takes a negative prompt.
        takes_prompt: Whether the pipelines take a prompt or a class label.
        examples: Prompts of the embedded teacher that a run was distilled from; empty for other teachers.
        medium: What all pipelines sample.

    Raises:
        ValueError: If a run cannot be read or the runs have different teachers.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        device: torch.device,
        precision: str,
        max_seconds: float = MAX_SECONDS,
        allow_pickle: bool = False,
    ) -> None:
        self.max_seconds = max_seconds
        self.device = device
        self.allow_pickle = allow_pickle
        with hold_pipelines(runs):
            self._load([read_run(run, allow_pickle=allow_pickle) for run in runs], PRECISIONS[precision])
        for pipeline in self.pipelines:  # warm-up
            self._generate(pipeline, Request(self.warm_up_prompt), 1)

    def _load(self, students: list[Run], dtype: torch.dtype) -> None:
        self.pipelines: list[DemoPipeline] = []
        self.medium = shared_medium(students)
        self.teacher_steps = 0
        distilled = next((run for run in students if run.teacher_call is not None), None)
        for run in students:
            if source_names(kind := pipeline_class(run.folder)):
                raise ValueError(
                    f"the demo has no input for a source image, which {kind.__name__} needs; use fewstep sample --image"
                )
            check_pipeline(run.folder, self.allow_pickle)
        if distilled is not None and distilled.teacher_call is not None:
            default, self.teacher_steps = distilled.teacher_call, distilled.teacher_steps
            folder = tuned_teacher_folder(students, self.allow_pickle)
            pipe = load_pipeline(folder, self.device, dtype, self.allow_pickle)
            self.pipelines.append(DemoPipeline("teacher", pipe, {self.teacher_steps: default}, is_teacher=True))
        for run in students:
            calls = {entry["num_steps"]: entry["call"] for entry in run.calls}
            pipe = load_pipeline(run.folder, self.device, dtype, self.allow_pickle)
            student = run.teacher_call is not None
            self.pipelines.append(DemoPipeline(run.name, pipe, calls, is_student=student))
        self.takes_prompt = takes_prompts(type(self.pipelines[0].pipe))
        self.guidance = self._usual_guidance()
        kinds = [type(pipeline.pipe) for pipeline in self.pipelines if not pipeline.is_student]
        self.takes_negative_prompt = any(argument(kind, "negative_prompt") for kind in kinds)
        self.student_steps = sorted({entry["num_steps"] for run in students for entry in run.calls})
        known = [EMBEDDED[run.teacher] for run in students if run.teacher in EMBEDDED]
        self.examples = known[0].examples_of_prompts if known else ()
        own = next((run for run in students if run.prompts is not None), None)
        prompts, _ = prompts_for(None if own is None else own_prompts([own]), 1)
        self.warm_up_prompt = prompts[0] if prompts else "0"

    def _usual_guidance(self) -> float | None:
        for pipeline in self.pipelines:
            if pipeline.takes_guidance:
                kind, call = type(pipeline.pipe), next(iter(pipeline.calls.values()))
                name = argument(kind, "guidance_scale") or ""
                return float(call.get(name, inspect.signature(kind.__call__).parameters[name].default) or 0)
        return None

    def generate(self, request: Request) -> list[TimedSamples]:
        """Generate samples with each pipeline, in the order of `pipelines`.

        Raises:
            ValueError: If the prompt is empty or too long, a number is out of range, or a pipeline takes too long.
        """
        self._check(request)
        return [
            self._generate(pipeline, request, request.teacher_steps if pipeline.is_teacher else request.num_steps)
            for pipeline in self.pipelines
        ]

    def _check(self, request: Request) -> None:
        if self.takes_prompt and not request.prompt.strip():
            raise ValueError(f"the prompt is empty; describe the {self.medium.noun} to generate")
        request.check()
        most = MAX_TEACHER_STEPS * self.teacher_steps
        if self.teacher_steps and not 1 <= request.teacher_steps <= most:
            raise ValueError(f"the teacher's steps must be from 1 to {most}, got {request.teacher_steps}")

    @torch.no_grad()
    def _generate(self, pipeline: DemoPipeline, request: Request, num_steps: int) -> TimedSamples:
        steps, call = pipeline.call(num_steps)
        call = call | pipeline.guided(request.guidance, request.negative_prompt.strip())
        prompts = [request.prompt.strip()] if self.takes_prompt else None
        seeds = tuple(request.seed + i for i in range(request.count))
        torch.manual_seed(request.seed)  # some pipelines take the noise of later steps from the global generator
        with reading(pipeline.name):
            ready = batch_arguments([arguments(pipeline.pipe, call, prompts, [0], seed) for seed in seeds])
            limit, memory = time_limit(pipeline, self.max_seconds), PeakMemory(self.device)
            with count_evaluations(pipeline.pipe) as count, limit, memory:
                output, seconds = timed(lambda: pipeline.pipe(**ready), self.device)
        samples, medium = self.medium.received(output)[: request.count].cpu(), self.medium
        if isinstance(medium, Video):
            samples, medium = reduced(samples, medium, LARGEST_CLIP)
        return TimedSamples(
            pipeline.name,
            tuple(to_pil(medium.still(sample)) for sample in samples),
            seeds,
            steps,
            count.evaluations / request.count,
            seconds * 1000,
            memory.megabytes,
            pipeline.weights,
            pipeline.is_student,
            () if medium.name == "image" else tuple(medium.playable(samples)),
        )


@contextmanager
def time_limit(pipeline: DemoPipeline, seconds: float) -> Iterator[None]:
    """Raise ValueError at the first network evaluation that begins more than `seconds` after the block."""
    start = time.monotonic()

    def check(module: torch.nn.Module, args: Any) -> None:
        if time.monotonic() - start > seconds:
            raise ValueError(f"{pipeline.name} took longer than {seconds:.0f} seconds; choose fewer steps")

    handle = network(pipeline.pipe).register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
