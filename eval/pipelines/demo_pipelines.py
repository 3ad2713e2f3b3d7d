"""The pipelines of the demo: a teacher and its students, loaded together and called with the same noise."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eval.pipelines.generate import Pipeline, arguments, check_pipeline, counted, load_pipeline, network
from eval.pipelines.inputs import shared_medium
from eval.pipelines.latency import timed
from eval.pipelines.locks import hold_pipelines
from eval.pipelines.machine import PRECISIONS
from eval.pipelines.runs import Run, own_prompts, prompts_for, read_run, tuned_teacher_folder
from eval.pipelines.signatures import argument, takes_prompts
from teachers.loading.embedded import EMBEDDED
from teachers.media import Playable, Video
from teachers.media.reduction import reduced
from teachers.support.errors import reading

MIN_DISPLAY_SIZE = 256  # pixels of the longer side; smaller images are magnified by a whole factor
LARGEST_CLIP = 512  # pixels of a clip's longer side on the page
MAX_SECONDS = 300.0  # of one pipeline call
MAX_PROMPT_LENGTH = 1000  # characters
MAX_TEACHER_STEPS = 4  # times the teacher's default number of steps


@dataclass(frozen=True)
class TimedSample:
    """A generated sample and its cost.

    Attributes:
        image: The image, magnified for display; the still of a clip or sound.
        steps: Denoising steps of the call.
        evaluations: Network evaluations, counted.
        milliseconds: Time of the pipeline call.
        playable: The clip or sound; None for images.
    """

    image: Image.Image
    steps: int
    evaluations: float
    milliseconds: float
    playable: Playable | None = None


@dataclass(frozen=True)
class DemoPipeline:
    """A loaded pipeline with its call arguments.

    Attributes:
        name: The heading on the page.
        pipe: The pipeline.
        calls: Call arguments by number of steps.
        is_teacher: Whether any number of steps is allowed; `calls` then has the default one.
    """

    name: str
    pipe: Pipeline
    calls: dict[int, dict[str, Any]]
    is_teacher: bool = False

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
            self._generate(pipeline, self.warm_up_prompt, 0, 1)

    def _load(self, students: list[Run], dtype: torch.dtype) -> None:
        self.pipelines: list[DemoPipeline] = []
        self.medium = shared_medium(students)
        self.teacher_steps = 0
        distilled = next((run for run in students if run.teacher_call is not None), None)
        for run in students:
            check_pipeline(run.folder, self.allow_pickle)
        if distilled is not None and distilled.teacher_call is not None:
            default, self.teacher_steps = distilled.teacher_call, distilled.teacher_steps
            folder = tuned_teacher_folder(students, self.allow_pickle)
            pipe = load_pipeline(folder, self.device, dtype, self.allow_pickle)
            self.pipelines.append(DemoPipeline("teacher", pipe, {self.teacher_steps: default}, is_teacher=True))
        for run in students:
            calls = {entry["num_steps"]: entry["call"] for entry in run.calls}
            pipe = load_pipeline(run.folder, self.device, dtype, self.allow_pickle)
            self.pipelines.append(DemoPipeline(run.name, pipe, calls))
        self.takes_prompt = takes_prompts(type(self.pipelines[0].pipe))
        self.student_steps = sorted({entry["num_steps"] for run in students for entry in run.calls})
        known = [EMBEDDED[run.teacher] for run in students if run.teacher in EMBEDDED]
        self.examples = known[0].examples_of_prompts if known else ()
        own = next((run for run in students if run.prompts is not None), None)
        prompts, _ = prompts_for(None if own is None else own_prompts([own]), 1)
        self.warm_up_prompt = prompts[0] if prompts else "0"

    def generate(self, prompt: str, seed: int, num_steps: int, teacher_steps: int) -> list[TimedSample]:
        """Generate a sample with each pipeline, in the order of `pipelines`.

        Args:
            prompt: The prompt; ignored if the pipelines take none.
            seed: Seed of the noise.
            num_steps: Steps of the students; each uses the nearest number that it supports.
            teacher_steps: Steps of the teacher.

        Raises:
            ValueError: If the prompt is empty or too long, a number of steps is out of range, or a pipeline takes too
                long.
        """
        if self.takes_prompt and not prompt.strip():
            article = "an" if self.medium.name == "image" else "a"
            raise ValueError(f"the prompt is empty; describe {article} {self.medium.noun}")
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise ValueError(f"the prompt must have at most {MAX_PROMPT_LENGTH:,} characters, got {len(prompt):,}")
        most = MAX_TEACHER_STEPS * self.teacher_steps
        if self.teacher_steps and not 1 <= teacher_steps <= most:
            raise ValueError(f"the teacher's steps must be from 1 to {most}, got {teacher_steps}")
        if num_steps < 1:
            raise ValueError(f"the students' steps must be at least 1, got {num_steps}")
        return [
            self._generate(pipeline, prompt.strip(), seed, teacher_steps if pipeline.is_teacher else num_steps)
            for pipeline in self.pipelines
        ]

    @torch.no_grad()
    def _generate(self, pipeline: DemoPipeline, prompt: str, seed: int, num_steps: int) -> TimedSample:
        steps, call = pipeline.call(num_steps)
        torch.manual_seed(seed % 2**63)  # some pipelines take the noise of later steps from the global generator
        with reading(pipeline.name):
            call_arguments = arguments(pipeline.pipe, call, [prompt] if self.takes_prompt else None, [0], seed)
            with counted(pipeline.pipe) as count, time_limit(pipeline, self.max_seconds):
                output, seconds = timed(lambda: pipeline.pipe(**call_arguments), self.device)
        samples, medium = self.medium.received(output)[:1].cpu(), self.medium
        if isinstance(medium, Video):
            samples, medium = reduced(samples, medium, LARGEST_CLIP)
        pixels = (medium.still(samples[0]) * 255).round().byte().permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels)
        factor = max(1, -(-MIN_DISPLAY_SIZE // max(image.size)))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        playable = None if medium.name == "image" else medium.playable(samples)[0]
        return TimedSample(image, steps, count.evaluations, seconds * 1000, playable)


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
