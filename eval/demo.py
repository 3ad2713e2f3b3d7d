"""Teacher and students side by side in a browser: one prompt, one seed, the same noise; images and milliseconds.

    pip install -e ".[demo]"
    python -m eval.demo runs/pocket-dmd runs/pocket-scm

The page is served to this machine only; --host 0.0.0.0 opens it to the network. A call's milliseconds are those of the
whole pipeline, from prompt to picture, after a first call that is not counted.
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
from eval.pipelines.runs import read_run, shared_setting, teacher_folder
from teachers.support.errors import run_click

LEAST = 256  # pixels of a picture's longer side on the page; smaller ones are enlarged without smoothing
LONGEST = 1000  # letters of a prompt
MOST = 4  # the teacher's slider goes to so many times its usual number of steps
EXAMPLES = ("a photo of an ankle boot", "a picture of a dress", "one bag, front view")  # where the pocket teacher draws


@dataclass(frozen=True)
class Drawn:
    """One picture, and what it took: steps as asked of the pipeline, evaluations of its network, milliseconds."""

    image: Image.Image
    steps: int
    evaluations: float
    milliseconds: float


@dataclass(frozen=True)
class Column:
    """A pipeline on the page. `calls` are its call arguments by number of steps; a teacher takes any number."""

    name: str
    pipe: Pipeline
    calls: dict[int, dict[str, Any]]
    teacher: bool = False

    def call(self, num_steps: int) -> tuple[int, dict[str, Any]]:
        """The number of steps that comes nearest to the one asked for, and its call."""
        if self.teacher:
            usual = next(iter(self.calls.values()))
            grid = {"timesteps", "sigmas"} if num_steps not in self.calls else set()  # made for the usual number
            return num_steps, {k: v for k, v in usual.items() if k not in grid} | {"num_inference_steps": num_steps}
        nearest = min(self.calls, key=lambda known: (abs(known - num_steps), known))
        return nearest, self.calls[nearest]


class Studio:
    """The runs' teacher and the students, in memory. Raises ValueError, one sentence, where they do not fit.

    A pipeline that no export of ours made is a column too; where there are only such, there is no teacher.
    """

    def __init__(self, runs: Sequence[Path], device: torch.device, precision: str) -> None:
        students, dtype, self.device = [read_run(run) for run in runs], PRECISIONS[precision], device
        self.columns: list[Column] = []
        self.usual = 0  # steps of the teacher
        usual = next((run.teacher_call for run in students if run.teacher_call is not None), None)
        if usual is not None:
            self.usual = usual["num_inference_steps"]
            pipe = load_pipeline(teacher_folder(shared_setting(students, "teacher")), device, dtype)
            self.columns.append(Column("teacher", pipe, {self.usual: usual}, teacher=True))
        for run in students:
            calls = {entry["num_steps"]: entry["call"] for entry in run.calls}
            self.columns.append(Column(run.name, load_pipeline(run.folder, device, dtype), calls))
        self.prompted = bool(parameters(type(self.columns[0].pipe)) & {"prompt", "class_labels"})
        self.choices = sorted({steps for column in self.columns if not column.teacher for steps in column.calls})
        self.pocket = any(run.teacher == "pocket" for run in students)
        for column in self.columns:  # so that no visitor waits for what happens once
            self._draw(column, EXAMPLES[0] if self.pocket else "0", 0, 1)

    def draw(self, prompt: str, seed: int, num_steps: int, teacher_steps: int) -> list[Drawn]:
        """A picture from each column. Raises ValueError, one sentence, for what cannot be drawn."""
        if self.prompted and not prompt.strip():
            raise ValueError("write what to draw")
        if len(prompt) > LONGEST:
            raise ValueError(f"the prompt has {len(prompt):,} letters; {LONGEST:,} are the most")
        if (self.usual and not 1 <= teacher_steps <= MOST * self.usual) or num_steps < 1:
            raise ValueError(f"the teacher takes 1 to {MOST * self.usual} steps here, and a student 1 at least")
        return [
            self._draw(column, prompt.strip(), seed, teacher_steps if column.teacher else num_steps)
            for column in self.columns
        ]

    @torch.no_grad()
    def _draw(self, column: Column, prompt: str, seed: int, num_steps: int) -> Drawn:
        steps, call = column.call(num_steps)
        torch.manual_seed(seed % 2**63)  # some pipelines take the noise of later steps from here
        asked = arguments(column.pipe, call, [prompt] if self.prompted else None, [0], seed)
        with counted(column.pipe) as count:
            output, seconds = timed(lambda: column.pipe(**asked), self.device)
        pixels = (images_of(output)[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(pixels)
        factor = max(1, -(-LEAST // max(image.size)))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        return Drawn(image, steps, count.evaluations, seconds * 1000)


def caption(drawn: Drawn, teacher: Drawn | None) -> str:
    """What stands under a picture, as HTML."""
    compared = teacher is not None and drawn is not teacher
    faster = f" &middot; {teacher.milliseconds / drawn.milliseconds:.1f} times as fast" if teacher and compared else ""
    return (
        f"<b>{drawn.milliseconds:,.0f} ms</b>{faster}<br>{drawn.steps} step{'s' * (drawn.steps != 1)}, "
        f"{drawn.evaluations:.0f} network evaluation{'s' * (drawn.evaluations != 1)}"
    )


def page(studio: Studio) -> Any:
    """The page, as gradio's Blocks. ValueError where gradio is missing."""
    gr = _gradio()
    with gr.Blocks(title="fewstep", analytics_enabled=False) as blocks:
        gr.HTML("<h1>One prompt, one noise</h1>The same start for every column. Milliseconds from prompt to picture.")
        with gr.Row():
            prompt = gr.Textbox(
                EXAMPLES[0] if studio.pocket else "",
                label="Prompt",
                max_length=LONGEST,
                scale=4,
                visible=studio.prompted,
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, scale=1)
        with gr.Row():
            steps = gr.Radio(studio.choices, value=studio.choices[0], label="Steps of the students")
            teacher = gr.Slider(
                1,
                MOST * (studio.usual or 1),
                studio.usual or 1,
                step=1,
                label="Steps of the teacher",
                visible=bool(studio.usual),
            )
        button = gr.Button("Draw", variant="primary")
        pictures, captions = [], []
        with gr.Row():
            for column in studio.columns:
                with gr.Column(min_width=200):
                    gr.HTML(f"<h3>{html.escape(column.name)}</h3>")
                    pictures.append(gr.Image(show_label=False, interactive=False, format="png", buttons=["download"]))
                    captions.append(gr.HTML("&nbsp;"))
        if studio.pocket:
            gr.Examples([[words] for words in EXAMPLES], prompt)

        def draw(prompt: str, seed: float | None, steps: int, teacher: float) -> list[Any]:
            try:
                drawn = studio.draw(prompt or "", int(seed or 0), int(steps), int(teacher))
            except ValueError as error:
                gr.Warning(html.escape(str(error)))  # an error would be painted over every picture
                return [gr.skip() for _ in range(2 * len(studio.columns))]
            measure = drawn[0] if studio.usual else None
            return [each.image for each in drawn] + [caption(each, measure) for each in drawn]

        one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "draw"}  # two at a time would time each other
        one |= {
            "inputs": [prompt, seed, steps, teacher],
            "outputs": [*pictures, *captions],
            "show_progress_on": pictures,
        }
        gr.on([button.click, prompt.submit], draw, api_name="draw", **one)
        if studio.pocket:
            blocks.load(draw, api_visibility="private", **one)
    return blocks


def serve(studio: Studio, host: str, port: int, share: bool) -> None:
    """Serve the page until the process is stopped."""
    gr = _gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none fetched from elsewhere
    page(studio).launch(
        server_name=host, server_port=port, share=share, theme=theme, footer_links=[], run_history=False
    )


def check_address(host: str, port: int) -> None:
    """ValueError where nothing can be served at `host`:`port`: told before weights load."""
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
    show: Callable[..., None] = serve,
) -> None:
    """Load `runs` and serve the page until the process is stopped.

    Args:
        runs: Finished runs, or pipeline folders.
        host, port: The address to serve at.
        share: Also serve at a public address, through gradio's servers.
        device: A torch device; None: a GPU if there is one.
        precision: float32, float16 or bfloat16; None: float16 on a GPU, float32 on a CPU.
        show: Serves the loaded studio.

    Raises:
        ValueError: One sentence for whatever the user can fix.
    """
    _gradio()
    check_address(host, port)
    chosen = choose_device(device)
    show(Studio(runs, chosen, choose_precision(precision, chosen)), host, port, share)


if __name__ == "__main__":
    from eval.__main__ import demo

    sys.exit(run_click(demo, name="python -m eval.demo"))
