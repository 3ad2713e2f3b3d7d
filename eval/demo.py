"""Generate with a teacher and its students side by side in a browser, with the time that each pipeline takes.

    pip install -e ".[demo]"
    fewstep demo runs/pocket-dmd runs/pocket-scm

All pipelines receive the same prompt, seed and initial noise. The page is served to this machine only; --host 0.0.0.0
opens it to the network. The time is that of the whole pipeline call, from prompt to sample, after one warm-up call.
"""

import base64
import html
import io
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eval.pipelines.demo_limits import KEEP_SECONDS, MAX_WAITING, RequestLimits
from eval.pipelines.demo_pipelines import (
    MAX_PROMPT_LENGTH,
    MAX_TEACHER_STEPS,
    MIN_DISPLAY_SIZE,
    Demo,
    TimedSample,
)
from eval.pipelines.machine import choose_device, choose_precision
from teachers.support.errors import run_click
from teachers.support.text import printable


def caption(result: TimedSample, teacher: TimedSample | None) -> str:
    """The time and cost of a sample as HTML, with the speed-up over the teacher's sample if there is one."""
    speedup = ""
    if teacher is not None and result is not teacher:
        speedup = f" &middot; {teacher.milliseconds / result.milliseconds:.1f}&times; speed-up"
    return (
        f"<b>{result.milliseconds:,.0f} ms</b>{speedup}<br>{result.steps} step{'s' * (result.steps != 1)}, "
        f"{result.evaluations:.0f} network evaluation{'s' * (result.evaluations != 1)}"
    )


def with_own_name(image: Image.Image) -> Image.Image:
    """`image` with a text that no other image has, so that gradio stores it in a file of its own.

    gradio names an image's file by its content and writes it again for every call, so an equal image of another call
    would be incomplete while a browser loads it.
    """
    image.info["call"] = uuid.uuid4().hex
    return image


def shown(result: TimedSample) -> Any:
    """A sample as the page shows it: an image, or HTML with a clip that loops or a sound with its spectrogram."""
    if result.playable is None:
        return with_own_name(result.image)
    played = _uri(result.playable.mime, result.playable.data)
    if result.playable.width:
        scale = max(1, MIN_DISPLAY_SIZE // max(result.playable.width, result.playable.height))
        return f'<img src="{played}" width="{result.playable.width * scale}" style="image-rendering: pixelated" alt="">'
    stream = io.BytesIO()
    result.image.save(stream, format="PNG")
    still = _uri("image/png", stream.getvalue())
    return f'<img src="{still}" style="width: 100%" alt=""><audio controls src="{played}" style="width: 100%"></audio>'


def _uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def page(demo: Demo) -> Any:
    """The page as gradio Blocks.

    Raises:
        ValueError: If gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="fewstep", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as blocks:
        gr.HTML(
            "<h1>Teacher and students side by side</h1>"
            "All pipelines start from the same noise. The time is that of the whole call, from prompt to "
            f"{demo.medium.noun}."
        )
        with gr.Row():
            prompt = gr.Textbox(
                demo.examples[0] if demo.examples else "",
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
                    gr.HTML(f"<h3>{html.escape(printable(pipeline.name))}</h3>")
                    images.append(
                        gr.Image(show_label=False, interactive=False, format="png", buttons=["download"])
                        if demo.medium.name == "image"
                        else gr.HTML()
                    )
                    captions.append(gr.HTML("&nbsp;"))
        if demo.examples:
            gr.Examples([[example] for example in demo.examples], prompt)

        def generate(prompt: str, seed: float | None, steps: int, teacher: float) -> list[Any]:
            try:
                results = demo.generate(prompt or "", int(seed or 0), int(steps), int(teacher))
            except (ValueError, OverflowError) as error:  # an infinite seed is the latter
                gr.Warning(html.escape(printable(error)))  # gr.Error would cover every image
                return [gr.skip() for _ in range(2 * len(demo.pipelines))]
            reference = results[0] if demo.teacher_steps else None
            return [shown(result) for result in results] + [caption(result, reference) for result in results]

        # Simultaneous calls would slow each other down and distort the times.
        event: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "generate"}
        event |= {
            "inputs": [prompt, seed, steps, teacher],
            "outputs": [*images, *captions],
            "show_progress_on": images,
        }
        gr.on([button.click, prompt.submit], generate, api_name="generate", **event)
        if demo.examples:
            blocks.load(generate, api_visibility="private", **event)
    return blocks


def serve(demo: Demo, host: str, port: int, share: bool, block: bool = True) -> Any:
    """Serve the page, which takes no files, no large requests and no more than `MAX_WAITING` calls at once.

    Args:
        demo: The loaded demo.
        host: The address to serve at.
        port: The port to serve at.
        share: Whether to serve at a public address too, through gradio's servers.
        block: Whether to serve until the process is stopped, or to return at once.

    Returns:
        The page as gradio Blocks.
    """
    from starlette.middleware import Middleware  # a dependency of gradio

    gr = _gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # downloads no fonts
    blocks = page(demo).queue(max_size=MAX_WAITING)
    blocks.launch(
        prevent_thread_lock=not block,
        server_name=host,
        server_port=port,
        share=share,
        theme=theme,
        footer_links=[],
        run_history=False,
        max_file_size=1,
        app_kwargs={"middleware": [Middleware(RequestLimits)]},
    )
    return blocks


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
    allow_pickle: bool = False,
    show: Callable[[Demo, str, int, bool], Any] = serve,
) -> None:
    """Load `runs` and serve the page until the process is stopped.

    Args:
        runs: Finished runs or pipeline folders.
        host: The address to serve at.
        port: The port to serve at.
        share: Whether to serve at a public address too, through gradio's servers.
        device: A torch device; None means a GPU if there is one.
        precision: float32, float16 or bfloat16; None means float16 on a GPU and float32 on a CPU.
        allow_pickle: Whether pickled weights are read where there are no safetensors files.
        show: Serves the loaded demo.

    Raises:
        ValueError: If gradio is missing, the port is in use, or the runs cannot be loaded.
    """
    _gradio()
    check_port(host, port)
    chosen = choose_device(device)
    loaded = Demo(runs, chosen, choose_precision(precision, chosen), allow_pickle=allow_pickle)
    show(loaded, host, port, share)


if __name__ == "__main__":
    from eval.__main__ import demo

    sys.exit(run_click(demo, name="python -m eval.demo"))
