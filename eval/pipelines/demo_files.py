"""The demo's results as files to download at their own size, and as HTML.

The files of each call are in a folder with a random name, so users cannot guess those of others. A file's name has the
pipeline, its steps and the seed; a PNG file also has the prompt and the call as text (`PIL.Image.Image.text`).
"""

import html
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from PIL.PngImagePlugin import PngInfo

from eval.pipelines.demo_limits import KEEP_SECONDS
from eval.pipelines.demo_requests import Request, TimedSamples
from eval.pipelines.jobs import steps_text
from teachers.media import Medium
from teachers.support.text import counted, printable

SMALL = 256  # pixels; images whose longer side is shorter are magnified by a whole factor in the page
ENDINGS = {"image/webp": ".webp", "audio/wav": ".wav"}


@dataclass(frozen=True)
class Results:
    """The samples of one pipeline in a call as files: names for downloads, files, and stills of clips and sounds."""

    names: tuple[str, ...]
    files: tuple[Path, ...]
    stills: tuple[Path, ...]


@dataclass
class Store:
    """Writes results into a folder and deletes those that are older than `KEEP_SECONDS`.

    Attributes:
        folder: The folder; it is deleted by `close`.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fewstep-demo-")))

    def write(self, request: Request, results: Sequence[TimedSamples]) -> list[Results]:
        """Write the samples of one call.

        Args:
            request: What the user asked for.
            results: The samples of each pipeline.

        Returns:
            The files of each pipeline, in the same order.
        """
        self.delete_old()
        folder = self.folder / uuid.uuid4().hex
        return [self._write(folder / str(number), request, result) for number, result in enumerate(results)]

    def _write(self, folder: Path, request: Request, result: TimedSamples) -> Results:
        folder.mkdir(parents=True)
        names, files, stills = [], [], []
        slug = re.sub("[^a-z0-9]+", "-", result.pipeline.lower()).strip("-")[:40] or "pipeline"
        for index, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
            # The name of the file itself, because gradio's header replaces that of the link.
            name = f"{slug}_{result.steps}-step{'s' * (result.steps != 1)}_seed-{seed}"
            still = folder / f"{name}.png"
            image.save(still, pnginfo=_described(request, result, seed))
            file = still
            if result.playables:
                file = still.with_suffix(ENDINGS[result.playables[index].mime])
                file.write_bytes(result.playables[index].data)
            names.append(file.name)
            files.append(file)
            stills.append(still)
        return Results(tuple(names), tuple(files), tuple(stills))

    def delete_old(self, seconds: float = KEEP_SECONDS) -> None:
        """Delete the files of calls that are older than `seconds`."""
        for call in self.folder.glob("*"):
            if call.stat().st_mtime < time.time() - seconds:
                shutil.rmtree(call, ignore_errors=True)

    def close(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _described(request: Request, result: TimedSamples, seed: int) -> PngInfo:
    info = PngInfo()
    values = {"prompt": request.prompt, "pipeline": result.pipeline, "steps": result.steps, "seed": seed}
    if not result.baked:
        guided = {"negative_prompt": request.negative_prompt, "guidance": request.guidance}
        values |= {name: value for name, value in guided.items() if value not in ("", None)}
    for name, value in values.items():
        info.add_itxt(name, printable(value))
    return info


def gallery(samples: TimedSamples, results: Results, prompt: str, medium: Medium) -> str:
    """The samples of a pipeline as HTML, each with a link that downloads its file."""
    return (
        '<div class="samples">'
        + "".join(_figure(samples, results, index, prompt, medium) for index in range(len(results.files)))
        + "</div>"
    )


def _figure(samples: TimedSamples, results: Results, index: int, prompt: str, medium: Medium) -> str:
    url = _url(results.files[index])
    alt = html.escape(printable(f"{samples.pipeline}, seed {samples.seeds[index]}: {prompt or medium.noun}"))
    image = samples.images[index]
    factor = max(1, -(-SMALL // max(image.size)))
    size = f'width="{image.width * factor}" height="{image.height * factor}"'
    style = ' class="pixelated"' if factor > 1 else ""
    shown = _url(results.stills[index]) if medium.name == "audio" else url
    player = f'<audio controls src="{url}" aria-label="{alt}"></audio>' if medium.name == "audio" else ""
    name = html.escape(results.names[index])
    return (
        f'<figure><img src="{shown}" {size}{style} alt="{alt}">{player}'
        f'<figcaption><a href="{url}" download="{name}">Download {name}</a></figcaption></figure>'
    )


def caption(results: TimedSamples, teacher: TimedSamples | None, device: str) -> str:
    """Time, cost and memory of a call as HTML, with the speed-up over the teacher's call if there is one."""
    speedup, count = "", len(results.images)
    if teacher is not None and results is not teacher:
        speedup = f" &middot; {teacher.milliseconds / results.milliseconds:.1f}&times; speed-up"
    each = f" ({results.milliseconds / count:,.0f} ms each)" if count > 1 else ""
    baked = "<br>guidance and negative prompt are part of the weights" if results.baked else ""
    memory = "peak on the GPU" if device == "cuda" else "peak of the process"
    return (
        f"<b>{results.milliseconds:,.0f} ms</b>{each}{speedup}<br>{steps_text(results.steps)}, "
        f"{counted(round(results.evaluations), 'network evaluation')}<br>"
        f"{results.weights:,.1f} MB of weights, {results.megabytes:,.0f} MB {memory}{baked}"
    )


def history(entries: Sequence[tuple[Request, list[Results]]]) -> str:
    """Earlier calls of this page as HTML, the latest first, each with its samples as links while they are kept."""
    items = []
    for request, results in reversed(entries):
        chosen = [f"seed {request.seed}", f"{steps_text(request.num_steps)} of the students"]
        chosen += [f"{request.teacher_steps} of the teacher"] if request.teacher_steps else []
        chosen += [f"guidance {request.guidance:g}"] if request.guidance is not None else []
        chosen += [f"without “{request.negative_prompt}”"] if request.negative_prompt else []
        links = "".join(
            f'<a href="{_url(file)}" download="{html.escape(name)}"><img src="{_url(still)}" height="72" '
            f'alt="{html.escape(name)}"></a>'
            for result in results
            for name, file, still in zip(result.names, result.files, result.stills, strict=True)
            if file.exists()
        )
        title = html.escape(printable(request.prompt or "no prompt"))
        items.append(f"<li><b>{title}</b> {html.escape(printable(', '.join(chosen)))}<div>{links}</div></li>")
    return f'<ol class="history">{"".join(items)}</ol>' if items else "<p>There are no earlier calls.</p>"


def _url(file: Path) -> str:
    """The address of a file, relative to the page (`allowed_paths` of gradio)."""
    return f"gradio_api/file={quote(str(file))}"
