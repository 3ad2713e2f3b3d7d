"""The options of a comparison, checked when they are created. No pipeline is read and torch is not imported."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.config.names import SCORERS, UNSUPPORTED_SCORERS
from teachers.support.invalid_option import InvalidOption
from teachers.support.options import check_fields, check_value, option

IN_PYTHON = ("runs", "few_steps", "lpips", "timing")  # not options of the command line
MOST_STEPS = 10_000
LARGEST_SEED = 2**32 - 1  # of numpy's generator, which draws KID's subsets


@dataclass(frozen=True)
class Timing:
    """How latencies are measured.

    Attributes:
        repeats: Timed calls at most.
        seconds: No further calls are timed after this many seconds, warm-up included.
        min_repeats: Timed calls at least.
        part_repeats: Timed calls for the split into denoiser and decoder.
    """

    repeats: int = option(20, at_least=1, at_most=10**6)
    seconds: float = option(6.0, at_least=0)
    min_repeats: int = option(3, at_least=1, at_most=10**6)
    part_repeats: int = option(3, at_least=1, at_most=10**6)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Options:
    """The options of `eval.compare.compare`, with the names of the command line's options.

    Attributes:
        runs: Folders of finished runs, folders of diffusers pipelines, or Hub ids.
        out: The folder of the report.
        samples: Samples of each row.
        batch_size: Samples generated at once.
        seed: Seed of the noise, the same for all rows.
        device: A torch device; None: a GPU if there is one.
        precision: "float32", "float16" or "bfloat16"; None: float16 on a GPU, float32 on a CPU.
        features: A feature extractor (`eval.config.names.FEATURES`); None: the one in the runs' distill.json.
        reference: Real images, as `eval.metrics.reference.reference` reads them; "teacher": the teacher's own samples
            from other noise; None: the one in the runs' distill.json.
        prompts: A file of prompts, "pocket" or "none"; None: the prompts in the runs' distill.json.
        inception_weights: A file of Inception weights.
        baseline: The run whose first row is the baseline of ratios. None: the teacher's usual call; without a teacher
            the first row.
        compiled: Also measure latency under torch.compile.
        steps: Numbers of steps, such as "4" or "1,4", for pipelines without a distill.json.
        guidance: The guidance_scale for pipelines without a distill.json.
        size: Pixels per side that images are resized to before they are scored (`eval.features.resize`).
        clip: A CLIP model; adds its CLIP score of images or of the frames of clips.
        clap: A CLAP model; adds its CLAP score of sounds.
        score: Further models that score images and prompts, such as "pickscore" or "objects=FOLDER".
        allow_pickle: Whether pickled weights are read where there are no safetensors files, of pipelines, feature
            extractors and CLIP models.
        protocol: The protocol file that the options come from; it is only named in the report.
        command: The command that the report shows; None: the command line of this process.
        few_steps: Numbers of steps that the teacher is also evaluated at.
        lpips: The LPIPS distance, a function of two batches of images (B, 3, H, W) in [0, 1]; None: no LPIPS;
            "auto": LPIPS with AlexNet if its weights are on this machine.
        timing: How latencies are measured.
    """

    runs: Sequence[Path]
    out: Path
    samples: int = option(1000, at_least=2, at_most=10**8)
    batch_size: int = option(32, at_least=1, at_most=10**6)
    seed: int = option(0, at_least=0, at_most=LARGEST_SEED)
    device: str | None = None
    precision: str | None = None
    features: str | None = None
    reference: str | None = None
    prompts: str | None = None
    inception_weights: Path | None = None
    baseline: Path | None = None
    compiled: bool = False
    steps: str | None = None
    guidance: float | None = option(None, at_least=0, at_most=1000)
    size: int | None = option(None, at_least=1, at_most=16384)
    clip: str | None = None
    clap: str | None = None
    score: Sequence[str] = ()
    allow_pickle: bool = False
    protocol: Path | None = None
    command: str | None = None
    few_steps: Sequence[int] = option((1, 2, 4, 8), at_least=1, at_most=MOST_STEPS)
    lpips: Any = "auto"
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        try:
            check_fields(self)
        except InvalidOption as error:
            raise InvalidOption(flag(error.key), error.problem) from error
        if self.lpips is not None and self.lpips != "auto" and not callable(self.lpips):
            raise ValueError(f'lpips must be a function, "auto" or None, got {self.lpips!r}')
        self.runs = list(self.runs)
        if not self.runs:
            raise ValueError("a comparison needs at least one run, got none")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out must be a folder, {self.out} is a file")
        self.step_counts = step_counts(self.steps)
        self.scorers = scorers(self.score)

    @property
    def describes_calls(self) -> bool:
        """Whether an option is set that only pipelines without a distill.json can use."""
        return self.steps is not None or self.guidance is not None


def flag(name: str) -> str:
    """How the command line calls an option of `Options`."""
    return name if name in IN_PYTHON else f"--{name.replace('_', '-')}"


def check_options(**values: Any) -> None:
    """Check options that another command shares with a comparison, such as `seed=0, batch_size=32`.

    Raises:
        InvalidOption: With the option's name on the command line.
    """
    for name, value in values.items():
        check_value(Options, name, value, flag(name))


def scorers(words: Sequence[str]) -> dict[str, str]:
    """The models of `--score` by name, from words such as "pickscore" or "objects=FOLDER".

    Raises:
        ValueError: If a name is unknown or not supported, stands twice, or needs a folder.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, source = str(word).partition("=")
        if name in UNSUPPORTED_SCORERS:
            raise ValueError(UNSUPPORTED_SCORERS[name])
        if name not in SCORERS or name in found:
            raise ValueError(f'--score must be one of {", ".join(SCORERS)}, each once, got "{word}"')
        chosen = source or SCORERS[name].source
        if chosen is None:
            raise ValueError(f"--score {name} needs a folder with the model and its processor: --score {name}=FOLDER")
        found[name] = chosen
    return found


def step_counts(text: str | None) -> list[int]:
    """Numbers of steps from text such as "4" or "1,2,4", without duplicates; none for None.

    Raises:
        ValueError: If the text contains something else.
    """
    if text is None:
        return []
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if not all(1 <= count <= MOST_STEPS for count in counts):
        raise ValueError(f'--steps must be whole numbers of at least 1, such as 4 or 1,2,4, got "{text}"')
    return list(dict.fromkeys(counts))
