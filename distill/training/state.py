"""The state of a run that training changes: networks, the student's EMA, optimizers, and the step."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.config.recipe import Recipe, method_options
from distill.config.sections import OptimizerRecipe
from distill.methods.base import Distiller
from distill.methods.contract import check_distiller
from distill.training import checkpoint
from distill.training.checkpoint import Checkpoint
from distill.training.engine import Engine
from distill.training.full_state import full_state, load_full_state, restore
from distill.training.guard import NonFiniteGuard, nonfinite_tensor
from distill.training.optimizers import adamw
from teachers.core.denoiser import Denoiser
from teachers.core.teacher import Teacher
from teachers.networks.adapters import unwrap
from teachers.networks.checkpointing import checkpoint_activations
from teachers.support.errors import reading

MAX_NONFINITE_STEPS = 10  # consecutive steps without a finite gradient before the run ends with an error
MAX_NONFINITE_STEPS_FP16 = 40  # the gradient scaler finds its scale by overflowing in the first steps


def build_distiller(
    recipe: Recipe, teacher: Teacher, device: torch.device, report: Callable[[str], None] = print
) -> Distiller:
    """The method of `recipe` around `teacher`, with the recipe's memory settings applied to the teacher's network.

    Args:
        recipe: A checked recipe.
        teacher: The loaded teacher. It is changed in place: LoRA and activation checkpointing are enabled on it.
        device: Where the method's networks go.
        report: Receives messages about settings that have no effect.

    Returns:
        The distiller, on `device`.
    """
    memory = recipe.memory
    if memory.tier == "lora":
        teacher.enable_lora(memory.rank)
    if memory.activation_checkpointing and not checkpoint_activations(
        teacher.denoiser.network, memory.checkpointing is True
    ):
        report("memory.checkpointing has no effect: this architecture does not support activation checkpointing")
    cls, options = method_options(recipe)
    distiller: Distiller = cls(teacher, recipe.teacher.guidance, options)
    return distiller.to(device)


def ema_decays(recipe: Recipe) -> tuple[float, ...]:
    """The decay of each exponential moving average of the student."""
    half_lives = recipe.train.ema_half_lives
    return tuple(0.5 ** (1 / half_life) for half_life in half_lives) or (recipe.train.ema,)


def _buffers_in_common(student: nn.Module, other: nn.Module) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The name of each buffer that both networks have, and the dicts of the modules that have it, of either network."""
    modules, found = dict(other.named_modules()), []
    for path, module in student.named_modules():
        target = modules[path]._buffers if path in modules else {}
        for name, buffer in module._buffers.items():
            if buffer is not None and getattr(target.get(name), "shape", None) == buffer.shape:
                found.append((name, module._buffers, target))
    return found


@dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
        distiller: The method with the networks that train.
        phases: The modules that the loop calls, one for each phase, wrapped for distributed training if necessary.
        emas: The exponential moving averages of the student.
        decays: The decay of each.
        half_lives: The half-life of each in steps, if there are several; else empty.
        optimizers: One for each phase.
        rates: Each phase's learning rate and schedule.
        guard: Skips steps with non-finite gradients.
        step: Number of completed steps.
        seconds: Training time so far, over all resumptions.
        chosen: The index of the average that is evaluated and exported.
    """

    distiller: Distiller
    phases: dict[str, nn.Module]
    emas: list[Denoiser]
    optimizers: dict[str, Any]
    rates: dict[str, OptimizerRecipe]
    guard: NonFiniteGuard
    step: int = 0
    seconds: float = 0.0
    decays: tuple[float, ...] = (0.99,)
    half_lives: tuple[float, ...] = ()
    chosen: int = 0

    def __post_init__(self) -> None:
        self.parameters = {
            phase: [p for module in modules for p in module.parameters()]
            for phase, modules in self.distiller.networks().items()
        }
        self.ema_parameters = [list(ema.parameters()) for ema in self.emas]
        self.averages = [(list(average.parameters()), decay) for average, decay in self.distiller.averages()]
        self.student_parameters = list(self.distiller.student.parameters())
        targets = [*self.emas, *(average for average, _ in self.distiller.averages())]
        self.buffers = [pair for target in targets for pair in _buffers_in_common(self.distiller.student, target)]

    @property
    def ema(self) -> Denoiser:
        """The average that is evaluated and exported."""
        return self.emas[self.chosen]

    @property
    def half_life(self) -> float | None:
        """The half-life of `ema` in steps; None if there is one average only."""
        return self.half_lives[self.chosen] if self.half_lives else None

    def choose(self, half_life: float | None) -> None:
        """Make the average with this half-life the one that is evaluated and exported."""
        if half_life in self.half_lives:
            self.chosen = self.half_lives.index(half_life)

    def update_emas(self, engine: Engine) -> None:
        """Update every average after a step; buffers, such as running statistics of a layer, are copied.

        In the first steps the exported averages follow the student more closely; those of the method
        (`Distiller.averages`) always have their own decay.
        """
        for parameters, decay in zip(self.ema_parameters, self.decays, strict=True):
            engine.update_ema(parameters, self.student_parameters, min(decay, (1 + self.step) / (10 + self.step)))
        for parameters, decay in self.averages:
            engine.update_ema(parameters, self.student_parameters, decay)
        for name, source, target in self.buffers:
            target[name].copy_(source[name])
        engine.discard_gathered([*self.emas, *(network for network, _ in self.distiller.averages())])

    def _named_emas(self) -> list[tuple[str, Denoiser]]:
        """Each average with the prefix of its tensors in a checkpoint, which is empty for a single one."""
        prefixes = [f"{half_life:g}/" for half_life in self.half_lives] or [""]
        return list(zip(prefixes, self.emas, strict=True))

    @classmethod
    def build(
        cls, recipe: Recipe, teacher: Teacher, engine: Engine, distiller: Distiller | None = None
    ) -> "TrainState":
        """The state at step 0. Every process calls it.

        Args:
            recipe: A checked recipe.
            teacher: The loaded teacher; see `build_distiller` for what changes in it.
            engine: The processes, devices and precision of the run.
            distiller: The method; by default the recipe's.

        Raises:
            ValueError: If a setting cannot be combined with sharded networks, or the method cannot be trained.
        """
        memory = recipe.memory
        for setting, on in {
            "memory.tier=lora": memory.tier == "lora",
            "memory.eight_bit=true": memory.eight_bit,
            "memory.offload_teacher=true": memory.offload_teacher,
        }.items():
            if on:
                engine.refuse_sharding(setting)
        torch.manual_seed(recipe.seed)
        if distiller is None:
            distiller = build_distiller(recipe, teacher, engine.device, engine.print)
        check_distiller(distiller, recipe.train.steps)
        engine.to_channels_last(unwrap(teacher.denoiser.network), distiller)
        if memory.offload_teacher:
            teacher.offload(engine.device)
        half_lives = recipe.train.ema_half_lives
        decays = ema_decays(recipe)
        emas = [copy.deepcopy(distiller.student).requires_grad_(False) for _ in decays]
        engine.to_channels_last(*emas)
        phases = engine.prepare(distiller, emas[0])
        if engine.sharding is not None:
            for ema in emas[1:]:
                engine.shard(ema.network)
        rates = {phase: recipe.optimizers.get(phase, OptimizerRecipe()) for phase in distiller.networks()}
        guard = NonFiniteGuard(recipe.seed, MAX_NONFINITE_STEPS if engine.scaler is None else MAX_NONFINITE_STEPS_FP16)
        state = cls(distiller, phases, emas, {}, rates, guard, decays=decays, half_lives=half_lives)
        state.optimizers = {p: adamw(state.parameters[p], rates[p], memory.eight_bit) for p in rates}
        return state

    def resume(self, folder: Path, engine: Engine, check: Callable[[dict[str, Any]], None] = lambda meta: None) -> bool:
        """Load the newest valid checkpoint in `folder`. Every process calls it.

        Args:
            folder: The run's folder of checkpoints.
            engine: The run's engine.
            check: Raises ValueError if the checkpoint with this meta record does not belong to the run.

        Returns:
            False if there is no checkpoint; the state is then unchanged.

        Raises:
            ValueError: If every checkpoint is damaged, the newest has weights that are not finite, or the processes see
                different checkpoints.
        """
        if engine.is_main:
            checkpoint.quarantine_damaged(folder)
        engine.wait()
        with reading(folder):
            saved = checkpoint.load_newest(folder)
        engine.check_same(0 if saved is None else saved.meta["step"], "checkpoints")
        if saved is None:
            return False
        check(saved.meta)
        seconds = saved.meta.get("seconds")
        if not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise ValueError(
                f"the checkpoint of step {saved.meta['step']} in {folder} must have its seconds of training, got "
                f"{seconds!r}; remove it to continue from an earlier one"
            )
        threads = saved.meta.get("threads")
        if engine.device.type == "cpu" and threads is not None and threads != torch.get_num_threads():
            engine.print(
                f"warning: the run had {threads!r} CPU threads before and has {torch.get_num_threads()} now, so its "
                "rounding differs from that of an uninterrupted run (set OMP_NUM_THREADS to choose)"
            )
        bad = nonfinite_tensor(saved.weights) or nonfinite_tensor(saved.ema)
        if bad is not None:
            raise ValueError(
                f"the checkpoint of step {saved.meta['step']} in {folder} must have finite weights, got NaN or "
                f"infinite values in {bad}; remove it to continue from an earlier one"
            )
        with reading(folder):
            load_full_state(self.distiller, saved.weights)
            for prefix, ema in self._named_emas():
                own = {name.removeprefix(prefix): v for name, v in saved.ema.items() if name.startswith(prefix)}
                load_full_state(ema, own)
            for phase, optimizer in self.optimizers.items():
                restore(optimizer, saved.optimizers[phase])
            if engine.scaler is not None and "scaler" in saved.optimizers:
                engine.scaler.load_state_dict(saved.optimizers["scaler"])
            self.step, self.seconds = saved.meta["step"], saved.meta["seconds"]
        return True

    def save(self, folder: Path, engine: Engine, fingerprint: dict[str, str], keep: int, keep_every: int = 0) -> None:
        """Write a checkpoint into `folder` atomically. Every process calls it; the main one writes.

        Args:
            folder: The run's folder of checkpoints.
            engine: The run's engine.
            fingerprint: Identifies the recipe and the data (`run_folder.fingerprint`).
            keep: How many of the newest checkpoints are kept.
            keep_every: Checkpoints of steps that are multiples of this are kept too; 0: none.

        Raises:
            ValueError: If it cannot be written, or weights are not finite; earlier checkpoints are then unchanged.
        """
        states = {phase: optimizer.state_dict() for phase, optimizer in self.optimizers.items()}
        if engine.scaler is not None:
            states["scaler"] = engine.scaler.state_dict()
        averages = {f"{prefix}{k}": v for prefix, ema in self._named_emas() for k, v in ema.state_dict().items()}
        state = Checkpoint(
            full_state(self.distiller.state_dict(), engine.is_main),
            full_state(averages, engine.is_main),
            full_state(states, engine.is_main),
            {
                "step": self.step,
                "seconds": self.seconds,
                "fingerprint": fingerprint,
                "threads": torch.get_num_threads(),
            },
        )
        if engine.is_main:
            bad = nonfinite_tensor(state.weights) or nonfinite_tensor(state.ema)
            if bad is not None:  # it would replace the last good one
                raise ValueError(
                    f"the checkpoint of step {self.step} was not written, because weights must be finite, got NaN or "
                    f"infinite values in {bad}; lower the learning rate"
                )
            checkpoint.save(folder, state, keep, keep_every)
