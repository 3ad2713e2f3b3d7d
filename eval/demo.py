"""Generate with a teacher and its students side by side in a browser, with the time that each pipeline takes.

    pip install -e ".[demo]"
    fewstep demo runs/pocket-dmd runs/pocket-scm

All pipelines receive the same prompt, seed and initial noise. The page is served to this machine only; --host 0.0.0.0
opens it to the network. The time is that of the whole pipeline call, from prompt to sample, after one warm-up call.
"""

import atexit
import html
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.pipelines.demo_files import Results, Store, caption, gallery, history
from eval.pipelines.demo_limits import KEEP_SECONDS, MAX_WAITING, RequestLimits
from eval.pipelines.demo_pipelines import MAX_TEACHER_STEPS, Demo
from eval.pipelines.demo_requests import LARGEST_SEED, MAX_BATCH, MAX_GUIDANCE, MAX_PROMPT_LENGTH, Request
from eval.pipelines.machine import choose_device, choose_precision
from teachers.support.errors import EXIT_INTERRUPTED, run_click
from teachers.support.text import printable

MOST_ENTRIES = 20  # of the history
ACCENT = "#2447f0"  # with white text it has a contrast of 6.4
STYLE = """
.samples { display: flex; flex-wrap: wrap; gap: .6rem; } .samples figure { margin: 0; max-width: 100%; }
.samples img { display: block; max-width: 100%; height: auto; border-radius: 4px; } .samples audio { width: 100%; }
.samples figcaption a { overflow-wrap: anywhere; color: var(--body-text-color); text-decoration: underline; }
.pixelated { image-rendering: pixelated; }
.history { padding-left: 1.4rem; } .history li { margin: .4rem 0; overflow-wrap: anywhere; }
.history div { display: flex; flex-wrap: wrap; gap: .3rem; } .history img { height: 72px; image-rendering: pixelated; }
"""


def page(demo: Demo, store: Store) -> Any:
    """The page as gradio Blocks.

    Args:
        demo: The loaded demo.
        store: Where results are written.

    Raises:
        ValueError: If gradio is not installed.
    """
    gr = _gradio()
    medium = demo.medium
    with gr.Blocks(title="fewstep", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as blocks:
        gr.HTML(
            "<h1>Teacher and students side by side</h1>"
            "All pipelines start from the same noise. The time is that of the whole call, from prompt to "
            f"{medium.noun}."
        )
        inputs = _inputs(gr, demo)
        button = gr.Button("Generate", variant="primary")
        shown, captions = [], []
        with gr.Row():
            for pipeline in demo.pipelines:
                with gr.Column(min_width=200):
                    gr.HTML(f"<h2>{html.escape(printable(pipeline.name))}</h2>")
                    shown.append(gr.HTML("", min_height=160))
                    captions.append(gr.HTML("&nbsp;"))
        with gr.Accordion("History of this page", open=False):
            earlier = gr.HTML(history([]))
        entries = gr.State([])

        def generate(
            prompt: str, negative_prompt: str, seed: float | None, count: int, steps: int, teacher: float | None,
            guidance: float | None, past: list[tuple[Request, list[Results]]],
        ) -> list[Any]:  # fmt: skip
            try:
                chosen = guidance if demo.guidance is not None else None
                request = Request(
                    prompt or "",
                    int(seed or 0),
                    int(steps),
                    int(teacher or 0),
                    chosen,
                    negative_prompt or "",
                    int(count),
                )
                samples = demo.generate(request)
                results = store.write(request, samples)
            except (ValueError, OverflowError) as error:  # an infinite seed is the latter
                gr.Warning(html.escape(printable(error)))  # gr.Error would cover every image
                return [gr.skip() for _ in range(2 * len(demo.pipelines) + 2)]
            past = [*past, (request, results)][-MOST_ENTRIES:]
            reference = samples[0] if demo.teacher_steps else None
            pairs = zip(samples, results, strict=True)
            figures = [gallery(sample, result, request.prompt, medium) for sample, result in pairs]
            costs = [caption(sample, reference, demo.device.type) for sample in samples]
            return [*figures, *costs, history(past), past]

        # Simultaneous calls would slow each other down and distort the times.
        event: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "generate"}
        event |= {
            "inputs": [*inputs, entries],
            "outputs": [*shown, *captions, earlier, entries],
            "show_progress_on": shown,
        }
        gr.on([button.click, inputs[0].submit], generate, api_name="generate", **event)
        if demo.examples:
            blocks.load(generate, api_visibility="private", **event)
    return blocks


def _inputs(gr: Any, demo: Demo) -> list[Any]:
    """Prompt, negative prompt, seed, samples, steps of the students, steps of the teacher and guidance."""
    plural = demo.medium.plural.capitalize()
    with gr.Row():
        prompt = gr.Textbox(
            demo.examples[0] if demo.examples else "",
            label="Prompt" + (f", such as: {'; '.join(demo.examples[1:])}" if demo.examples else ""),
            max_length=MAX_PROMPT_LENGTH,
            scale=3,
            min_width=260,
            visible=demo.takes_prompt,
        )
        negative = gr.Textbox(
            "",
            label="Negative prompt of the teacher",
            max_length=MAX_PROMPT_LENGTH,
            scale=2,
            min_width=260,
            visible=demo.takes_prompt and demo.takes_negative_prompt,
        )
    with gr.Row():
        seed = gr.Number(0, label="Seed of the first", precision=0, minimum=0, maximum=LARGEST_SEED, min_width=120)
        count = gr.Dropdown(list(range(1, MAX_BATCH + 1)), value=1, label=f"{plural} of one call", min_width=120)
        steps = gr.Dropdown(demo.student_steps, value=demo.student_steps[0], label="Students' steps", min_width=120)
        teacher = gr.Number(
            demo.teacher_steps or 1,
            label="Teacher's steps",
            precision=0,
            minimum=1,
            maximum=MAX_TEACHER_STEPS * (demo.teacher_steps or 1),
            min_width=120,
            visible=bool(demo.teacher_steps),
        )
        guidance = gr.Number(
            demo.guidance or 0,
            label="Teacher's guidance",
            minimum=0,
            maximum=MAX_GUIDANCE,
            step=0.5,
            min_width=120,
            visible=demo.guidance is not None,
        )
    return [prompt, negative, seed, count, steps, teacher, guidance]


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

    gr, store = _gradio(), Store()
    atexit.register(store.close)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(  # downloads no fonts
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_dark=ACCENT,
        button_primary_background_fill_hover=ACCENT,
        button_primary_background_fill_hover_dark=ACCENT,
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    blocks = page(demo, store).queue(max_size=MAX_WAITING)
    blocks.launch(
        prevent_thread_lock=True,
        server_name=host,
        server_port=port,
        share=share,
        theme=theme,
        footer_links=[],
        run_history=False,
        max_file_size=1,
        allowed_paths=[str(store.folder)],
        css=STYLE,
        app_kwargs={"middleware": [Middleware(RequestLimits)]},
    )
    if block:
        wait_until_interrupted(blocks, store)
    return blocks


def wait_until_interrupted(blocks: Any, store: Store, leave: Callable[[int], Any] = os._exit) -> None:
    """Wait until Ctrl-C, and end the process at once.

    The server's threads may still generate; gradio would wait for them, and a second Ctrl-C prints a traceback or
    aborts the process.

    Args:
        blocks: The page, which is served.
        store: Where results are written; it is deleted.
        leave: Ends the process with an exit code.
    """
    from gradio.tunneling import CURRENT_TUNNELS

    try:
        while blocks.is_running:
            time.sleep(0.1)
    except KeyboardInterrupt:
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()
        store.close()
        print("the page is closed", flush=True)
        leave(EXIT_INTERRUPTED)


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
