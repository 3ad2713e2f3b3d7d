"""Generate images with a teacher and its students side by side in a browser, with the time each pipeline takes.

    pip install -e ".[demo]"
    fewstep demo runs/pocket-dmd runs/pocket-scm

All pipelines receive the same prompt, seed and initial noise. The page is served to this machine only; --host 0.0.0.0
opens it to the network. The time is that of the whole pipeline call, from prompt to image, after one warm-up call.
"""

import html
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eval.pipelines.generate import Pipeline, arguments, counted, images_of, load_pipeline, parameters
from eval.pipelines.latency import timed
from eval.pipelines.machine import PRECISIONS, choose_device, choose_precision
from eval.pipelines.runs import read_run, same, teacher_folder
from teachers.support.errors import run_click

MIN_DISPLAY_SIZE = 256  # pixels of the longer side; smaller images are magnified by a whole factor
MAX_PROMPT_LENGTH = 1000  # characters
MAX_TEACHER_STEPS = 4  # times the teacher's default number of steps
EXAMPLES = ("a photo of an ankle boot", "a picture of a dress", "one bag, front view")  # prompts of the pocket teacher


@dataclass(frozen=True)
class TimedImage:
    """A generated image and its cost.

    Attributes:
        image: The image, magnified for display.
        steps: Denoising steps of the call.
        evaluations: Network evaluations, counted.
        milliseconds: Time of the pipeline call.
    """

    image: Image.Image
    steps: int
    evaluations: float
    milliseconds: float


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
            default = next(iter(self.calls.values()))
            # An explicit time grid is valid for the default number of steps only.
            dropped = {"timesteps", "sigmas"} if num_steps not in self.calls else set()
            call = {k: v for k, v in default.items() if k not in dropped}
            return num_steps, call | {"num_inference_steps": num_steps}
        nearest = min(self.calls, key=lambda steps: (abs(steps - num_steps), steps))
        return nearest, self.calls[nearest]


class Demo:
    """The teacher of the runs and the students, loaded and warmed up.

    A pipeline without a distill.json is shown like a student. If all are such pipelines, there is no teacher.

    Args:
        runs: Finished runs or pipeline folders.
        device: The device of all pipelines.
        precision: A key of `PRECISIONS`.

    Attributes:
        pipelines: The teacher first, then the students.
        teacher_steps: The teacher's default number of steps, 0 without a teacher.
        student_steps: The numbers of steps that students were exported for.
        takes_prompt: Whether the pipelines take a prompt or a class label.
        is_pocket: Whether a run was distilled from the pocket teacher.

    Raises:
        ValueError: If a run cannot be read or the runs have different teachers.
    """

    def __init__(self, runs: Sequence[Path], device: torch.device, precision: str) -> None:
        students, dtype, self.device = [read_run(run) for run in runs], PRECISIONS[precision], device
        self.pipelines: list[DemoPipeline] = []
        self.teacher_steps = 0
        default = next((run.teacher_call for run in students if run.teacher_call is not None), None)
        if default is not None:
            self.teacher_steps = default["num_inference_steps"]
            pipe = load_pipeline(teacher_folder(same(students, "teacher")), device, dtype)
            self.pipelines.append(DemoPipeline("teacher", pipe, {self.teacher_steps: default}, is_teacher=True))
        for run in students:
            calls = {entry["num_steps"]: entry["call"] for entry in run.calls}
            self.pipelines.append(DemoPipeline(run.name, load_pipeline(run.folder, device, dtype), calls))
        self.takes_prompt = bool(parameters(type(self.pipelines[0].pipe)) & {"prompt", "class_labels"})
        self.student_steps = sorted(
            {s for pipeline in self.pipelines if not pipeline.is_teacher for s in pipeline.calls}
        )
        self.is_pocket = any(run.teacher == "pocket" for run in students)
        for pipeline in self.pipelines:  # warm-up
            self._generate(pipeline, EXAMPLES[0] if self.is_pocket else "0", 0, 1)

    def generate(self, prompt: str, seed: int, num_steps: int, teacher_steps: int) -> list[TimedImage]:
        """Generate an image with each pipeline, in the order of `pipelines`.

        Args:
            prompt: The prompt; ignored if the pipelines take none.
            seed: Seed of the noise.
            num_steps: Steps of the students; each uses the nearest number that it supports.
            teacher_steps: Steps of the teacher.

        Raises:
            ValueError: If the prompt is empty or too long, or a number of steps is out of range.
        """
        if self.takes_prompt and not prompt.strip():
            raise ValueError("the prompt is empty; describe an image")
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
    def _generate(self, pipeline: DemoPipeline, prompt: str, seed: int, num_steps: int) -> TimedImage:
        steps, call = pipeline.call(num_steps)
        torch.manual_seed(seed % 2**63)  # some pipelines take the noise of later steps from the global generator
        call_arguments = arguments(pipeline.pipe, call, [prompt] if self.takes_prompt else None, [0], seed)
        with counted(pipeline.pipe) as count:
            output, seconds = timed(lambda: pipeline.pipe(**call_arguments), self.device)
        pixels = (images_of(output)[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(pixels)
        factor = max(1, -(-MIN_DISPLAY_SIZE // max(image.size)))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        return TimedImage(image, steps, count.evaluations, seconds * 1000)


def caption(result: TimedImage, teacher: TimedImage | None) -> str:
    """The time and cost of an image as HTML, with the speed-up over the teacher's image if there is one."""
    speedup = ""
    if teacher is not None and result is not teacher:
        speedup = f" &middot; {teacher.milliseconds / result.milliseconds:.1f}&times; speed-up"
    return (
        f"<b>{result.milliseconds:,.0f} ms</b>{speedup}<br>{result.steps} step{'s' * (result.steps != 1)}, "
        f"{result.evaluations:.0f} network evaluation{'s' * (result.evaluations != 1)}"
    )


def page(demo: Demo) -> Any:
    """The page as gradio Blocks.

    Raises:
        ValueError: If gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="fewstep", analytics_enabled=False) as blocks:
        gr.HTML(
            "<h1>Teacher and students side by side</h1>"
            "All pipelines start from the same noise. The time is that of the whole call, from prompt to image."
        )
        with gr.Row():
            prompt = gr.Textbox(
                EXAMPLES[0] if demo.is_pocket else "",
                label="Prompt",
                max_length=MAX_PROMPT_LENGTH,
                scale=4,
                visible=demo.takes_prompt,
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, scale=1)
        with gr.Row():
            steps = gr.Radio(demo.student_steps, value=demo.student_steps[0], label="Steps of the students")
            teacher = gr.Slider(
                1,
                MAX_TEACHER_STEPS * (demo.teacher_steps or 1),
                demo.teacher_steps or 1,
                step=1,
                label="Steps of the teacher",
                visible=bool(demo.teacher_steps),
            )
        button = gr.Button("Generate", variant="primary")
        images, captions = [], []
        with gr.Row():
            for pipeline in demo.pipelines:
                with gr.Column(min_width=200):
                    gr.HTML(f"<h3>{html.escape(pipeline.name)}</h3>")
                    images.append(gr.Image(show_label=False, interactive=False, format="png", buttons=["download"]))
                    captions.append(gr.HTML("&nbsp;"))
        if demo.is_pocket:
            gr.Examples([[example] for example in EXAMPLES], prompt)

        def generate(prompt: str, seed: float | None, steps: int, teacher: float) -> list[Any]:
            try:
                results = demo.generate(prompt or "", int(seed or 0), int(steps), int(teacher))
            except ValueError as error:
                gr.Warning(html.escape(str(error)))  # gr.Error would cover every image
                return [gr.skip() for _ in range(2 * len(demo.pipelines))]
            reference = results[0] if demo.teacher_steps else None
            return [result.image for result in results] + [caption(result, reference) for result in results]

        # Simultaneous calls would slow each other down and distort the times.
        event: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "generate"}
        event |= {
            "inputs": [prompt, seed, steps, teacher],
            "outputs": [*images, *captions],
            "show_progress_on": images,
        }
        gr.on([button.click, prompt.submit], generate, api_name="generate", **event)
        if demo.is_pocket:
            blocks.load(generate, api_visibility="private", **event)
    return blocks


def serve(demo: Demo, host: str, port: int, share: bool) -> None:
    """Serve the page until the process is stopped."""
    gr = _gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # downloads no fonts
    page(demo).launch(server_name=host, server_port=port, share=share, theme=theme, footer_links=[], run_history=False)


def check_port(host: str, port: int) -> None:
    """Check that `host`:`port` can be bound, before any weights are loaded.

    Raises:
        ValueError: If it cannot.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"the page cannot be served at {host}:{port} ({error}); choose another --port") from error


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ValueError('the demo needs gradio: pip install -e ".[demo]"') from error
    return gradio


def serve_runs(
    runs: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    device: str | None = None,
    precision: str | None = None,
    show: Callable[[Demo, str, int, bool], None] = serve,
) -> None:
    """Load `runs` and serve the page until the process is stopped.

    Args:
        runs: Finished runs or pipeline folders.
        host: The address to serve at.
        port: The port to serve at.
        share: Whether to serve at a public address too, through gradio's servers.
        device: A torch device; None means a GPU if there is one.
        precision: float32, float16 or bfloat16; None means float16 on a GPU and float32 on a CPU.
        show: Serves the loaded demo.

    Raises:
        ValueError: If gradio is missing, the port is in use, or the runs cannot be loaded.
    """
    _gradio()
    check_port(host, port)
    chosen = choose_device(device)
    show(Demo(runs, chosen, choose_precision(precision, chosen)), host, port, share)


if __name__ == "__main__":
    from eval.__main__ import demo

    sys.exit(run_click(demo, name="python -m eval.demo"))
