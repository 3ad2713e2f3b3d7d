"""The sections of a recipe. Each checks itself when it is created; checks across sections are in `Recipe`."""

from dataclasses import dataclass
from typing import Literal

import torch

from distill.config.typed import Checked, InvalidOption, option
from teachers.core.exportable import ExportSchedule
from teachers.loading.embedded import EMBEDDED
from teachers.loading.lora_files import Lora, locate_lora
from teachers.networks.quantized import Quantization

NAMES = ", ".join(f'"{name}"' for name in EMBEDDED)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of teacher.precision


@dataclass
class TeacherRecipe(Checked):
    """`teacher:` in a recipe: which pipeline is distilled, and at which guidance."""

    path: str | None = option(
        None,
        f"The teacher: a pipeline folder, a Hub id, a .safetensors file, or {NAMES}. null: given to `train` in Python.",
    )
    family: str = option("auto", "The teacher family; auto: detected from the pipeline at `path`.")
    guidance: float = option(
        1.0, "Classifier-free guidance scale that goes into the student; 1.0 means none.", at_least=1, at_most=1000
    )
    num_steps: int = option(
        50, "Steps of the teacher's usual call, the baseline of the report.", at_least=1, at_most=10_000
    )
    sigma_data: float | None = option(
        None,
        "Standard deviation of the native latents or pixels; null: that of an EDM scheduler, else of the family, "
        "1.0 by default.",
        above=0,
        at_most=1e4,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision of the frozen weights; auto: float32, or bfloat16 with memory.tier=lora."
    )
    loras: tuple[Lora, ...] = option(
        (),
        "Fine-tunes that are fused into the teacher before distillation, in order: LoRA files (of kohya, "
        "diffusers or peft), folders of a fine-tuned pipeline or network, or Hub ids; each as a path, or as "
        "{path: ..., scale: 0.8}.",
    )
    image_guidance: float | None = option(
        None,
        "Scale of the guidance towards the source image, for InstructPix2Pix; null: 1.5, the default of its call. It "
        "needs guidance above 1.",
        at_least=1,
        at_most=1000,
    )
    negative_prompt: str | None = option(
        None,
        "The negative prompt of the guidance that goes into the student, in place of the empty prompt; it needs "
        "guidance above 1.",
    )
    size: dict[str, float] | None = option(
        None,
        "Size of a sample where the call of its pipeline determines it, such as {height: 768, width: 1344}, "
        "{height: 480, width: 832, frames: 81, rate: 16} or {seconds: 10}; null, or a missing key: the default of that "
        "call.",
    )

    def check(self) -> None:
        for lora in self.loras:
            locate_lora(lora.path)  # it must exist
        if self.negative_prompt is not None and self.guidance == 1:
            raise InvalidOption("negative_prompt", "must be null with teacher.guidance=1, which ignores it")
        if self.image_guidance is not None and self.guidance == 1:
            raise InvalidOption("image_guidance", "must be null with teacher.guidance=1, which ignores it")
        if self.path is None and self.loras:
            raise InvalidOption("loras", "must be empty without teacher.path: fuse them into the teacher in memory")


@dataclass
class DataRecipe(Checked):
    """`data:` in a recipe: prompts, or captioned images, clips or sounds."""

    prompts: str | None = option(
        None, f"Prompts: {NAMES}, a text file with one prompt per line, or a .jsonl, .csv, .tsv or .parquet file."
    )
    images: str | None = option(
        None,
        f"Captioned images, clips or sounds, as the teacher makes them: {NAMES}, a folder, .parquet or .tar files, or "
        "a dataset on the Hub. For a teacher with source images: rows of source image, instruction and edited image.",
    )
    latents: str | None = option(
        None, "Ready-made latents with captions instead of images: a .safetensors file, or a folder of them."
    )
    column: str | None = option(None, "The column of captions; null: text, prompt or caption.")
    streaming: bool = option(False, "Read .parquet, .tar or the Hub once, front to back, without a local copy.")
    limit: int = option(0, "Number of rows that are used, from the first; 0: all.", at_least=0)

    def check(self) -> None:
        if self.streaming and self.images is None:
            raise InvalidOption("streaming", "must be false without data.images, got True")
        if self.latents is not None and self.images is not None:
            raise InvalidOption("latents", f"must be null with data.images, got {self.latents!r}")
        if self.column is not None and self.latents is not None:
            raise InvalidOption("column", f"must be null with data.latents, got {self.column!r}")
        if self.column is not None and self.images is None and self.prompts in EMBEDDED:
            raise InvalidOption("column", f"must be null with data.prompts={self.prompts}, got {self.column!r}")
        if self.images in EMBEDDED and (self.streaming or self.column is not None):
            name = "streaming" if self.streaming else "column"
            default = "false" if self.streaming else "null"
            raise InvalidOption(name, f"must be {default} with data.images={self.images}, got {getattr(self, name)!r}")


@dataclass
class OptimizerRecipe(Checked):
    """`optimizers.NAME:` in a recipe: AdamW for one phase (student, fake_score)."""

    lr: float = option(1e-4, "Learning rate.", above=0, at_most=10)
    betas: tuple[float, float] = option((0.9, 0.99), "AdamW's betas.", at_least=0, below=1)
    eps: float = option(1e-8, "AdamW's epsilon.", above=0, at_most=1e6)
    weight_decay: float = option(0.01, "AdamW's weight decay, at most 1 / lr.", at_least=0)
    warmup: int = option(0, "Steps of linear warm-up.", at_least=0, at_most=10**9)
    schedule: Literal["constant", "cosine"] = option("constant", "cosine falls to zero at the last step.")

    def check(self) -> None:
        if self.lr * self.weight_decay > 1 + 1e-9:  # a step would change the sign of every weight
            raise InvalidOption("weight_decay", f"must be at most 1 / lr ({1 / self.lr:g}), got {self.weight_decay:g}")


@dataclass
class TrainRecipe(Checked):
    """`train:` in a recipe: the loop."""

    steps: int = option(1000, "Steps; one step updates the student once.", at_least=0, at_most=10**9)
    batch_size: int = option(64, "Samples of a step, over all processes and micro-batches.", at_least=1, at_most=10**7)
    accumulation: int = option(1, "Micro-batches per step on each process.", at_least=1, at_most=10**7)
    max_norm: float = option(
        1.0, "Gradients are clipped to this norm; a large one, such as 1e9, clips nothing.", above=0
    )
    ema: float = option(0.99, "Decay of the exponential moving average that is exported.", at_least=0, below=1)
    ema_half_lives: tuple[float, ...] = option(
        (),
        "Two or three half-lives in steps, such as [50, 200], in place of `ema`: each has an average of its own, and "
        "the one with the smallest held-out distance is exported.",
        above=0,
        at_most=1e9,
        order="increase",
    )
    precision: Literal["no", "bf16", "fp16"] = option("no", "Mixed precision, as accelerate's mixed_precision.")
    compile: Literal["none", "blocks", "networks"] = option(
        "none", "torch.compile: the repeated blocks of the networks, or whole networks."
    )
    channels_last: bool = option(False, "Convolution weights and activations in channels-last memory format.")
    checkpoint_every: int = option(200, "Steps between checkpoints.", at_least=1)
    keep_checkpoints: int = option(2, "How many of the newest checkpoints are kept.", at_least=1)
    keep_every: int = option(0, "Also keep the checkpoints of steps that are multiples of this; 0: none.", at_least=0)
    on_failed_save: Literal["continue", "stop"] = option(
        "continue", "What happens when a checkpoint cannot be written; the previous one is kept either way."
    )
    shard_teacher: bool = option(False, "FSDP2 only: shard the frozen teacher too.")
    log_every: int = option(20, "Steps between log lines.", at_least=1)
    evaluate_every: int = option(
        200, "Steps between evaluations (held-out Frechet distance, sample grid); 0: never.", at_least=0
    )
    evaluate_samples: int = option(500, "Samples of the held-out Frechet distance.", at_least=2, at_most=10**7)
    evaluate_teacher_steps: int = option(
        50, "The teacher's steps for the samples of the held-out distance.", at_least=1, at_most=10_000
    )
    export: Literal["best", "last"] = option(
        "best",
        "The EMA that is exported. last: that of the last step. best: the same if its held-out distance is at most 1.5 "
        "times the smallest of the run; otherwise the EMA with the smallest distance.",
    )
    tracker: Literal["tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "none"] = option(
        "tensorboard",
        "Where metrics and samples are logged. tensorboard is always installed; the others are optional packages.",
    )

    def check(self) -> None:
        if len(self.ema_half_lives) not in (0, 2, 3):
            raise InvalidOption("ema_half_lives", f"must have 2 or 3 values, got {list(self.ema_half_lives)}")
        if self.batch_size % self.accumulation:
            raise InvalidOption(
                "batch_size", f"must be a multiple of train.accumulation ({self.accumulation}), got {self.batch_size}"
            )

    def local_batch_size(self, processes: int) -> int:
        """Samples of one micro-batch on each of several processes.

        Raises:
            ValueError: If the processes cannot have equally many.
        """
        micro = self.batch_size // self.accumulation
        if micro % processes:
            fitting = [n for n in range(1, self.accumulation) if self.batch_size % (n * processes) == 0]
            advice = f"; train.accumulation={fitting[-1]} fits" if fitting else ""
            raise ValueError(
                f"train.batch_size / train.accumulation must be a multiple of the number of processes ({processes}), "
                f"got {micro}{advice}"
            )
        return micro // processes


@dataclass
class MemoryRecipe(Checked):
    """`memory:` in a recipe: settings that reduce memory use."""

    tier: Literal["full", "lora"] = option(
        "full", "full: a whole network each for student and fake score; lora: LoRA adapters on the teacher's network."
    )
    rank: int = option(64, "Rank of the LoRA adapters.", at_least=1, at_most=65536)
    checkpointing: bool | None = option(
        None, "Activation checkpointing; null: on with memory.tier=lora, off with memory.tier=full."
    )
    eight_bit: bool = option(False, "AdamW's moments in 8 bits (bitsandbytes).")
    quantize: Quantization = option(
        "none",
        "Form of the frozen base that adapters share: int8 halves the memory of bfloat16, nf4 (bitsandbytes) needs "
        "28% of it. Linear layers only.",
    )
    offload_teacher: bool = option(False, "Keep the frozen teacher in host memory between its calls.")

    def check(self) -> None:
        if self.offload_teacher and self.tier == "lora":
            raise InvalidOption(
                "offload_teacher", "must be false with memory.tier=lora: adapters run on the teacher's own network"
            )
        if self.quantize != "none" and self.tier == "full":
            raise InvalidOption(
                "quantize", "must be none with memory.tier=full: quantized weights cannot be trained; set it to lora"
            )

    @property
    def activation_checkpointing(self) -> bool:
        """Whether activations are checkpointed, with the tier's default filled in."""
        return self.tier == "lora" if self.checkpointing is None else self.checkpointing


@dataclass
class ExportRecipe(Checked):
    """`export:` in a recipe: the form of the exported pipeline."""

    schedule: ExportSchedule = option(
        "native",
        "native: the exported student keeps the teacher's noise schedule and timesteps, so that other schedulers, "
        "ControlNets, adapters and front ends see the noise levels that they were made for. bent: the noise levels of "
        "the usual timesteps are changed to the student's angles, which may be any.",
    )
    safety_checker: bool = option(
        True, "Keep the safety checker of the teacher (Stable Diffusion 1.x has one) in the exported pipeline."
    )
