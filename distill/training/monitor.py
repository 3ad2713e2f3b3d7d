"""Evaluations during training: held-out distances in a file, and previews of samples.

Losses do not show whether a distillation works: the fake score's loss falls even when samples collapse.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill.config.run_files import SAMPLES
from distill.methods.base import Distiller
from distill.training.held_out import HeldOut
from distill.training.jsonl_log import JsonlLog, warn_if_unwritable
from distill.training.previews import preview, still_grid, write_previews
from distill.training.tracked_samples import log_media
from distill.training.trackers import log_image
from eval.pipelines.jobs import steps_text
from teachers.core.denoiser import Denoiser


class Monitor:
    """Writes and logs the evaluations of a run.

    Args:
        folder: The run's folder.
        held_out: What evaluates.
    """

    def __init__(self, folder: Path, held_out: HeldOut) -> None:
        self.folder, self.held_out, self.medium = folder, held_out, held_out.teacher.medium

    def grid(self, step: int, rows: Mapping[str, tuple[Denoiser, Sequence[float]]]) -> tuple[Tensor, list[Tensor]]:
        """Save previews of samples: the teacher's in the first row, then a row for each denoiser, from the same noise.

        Args:
            step: The training step, which becomes the file's name.
            rows: A denoiser and its sampling angles for each row, by name.

        Returns:
            The grid of stills as one picture (3, H, W) in [0, 1], and the samples of each row.
        """
        medium, prompts = self.medium, self.held_out.shown_prompts()
        samples = [self.held_out.teacher_results["images"]]
        for denoiser, times in rows.values():
            parts = [preview(part, medium).cpu() for part in self.held_out.batches(denoiser, times, prompts)]
            samples.append(torch.cat(parts))
        grid = still_grid(samples, medium)
        if self.held_out.writes:
            with warn_if_unwritable(f"the grid of samples of step {step}"):
                write_previews(self.folder / SAMPLES, step, ["teacher", *rows], grid, samples, medium)
        return grid, samples

    def evaluate(
        self,
        history: JsonlLog,
        distiller: Distiller,
        ema: Denoiser,
        step: int,
        seconds: float,
        trackers: Sequence[Any],
        chosen: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Evaluate the EMA: Frechet distances for each number of steps, and a grid of samples.

        Every process that evaluates calls it. The process that writes appends a record to `history`, prints a message
        and logs to the trackers.

        Args:
            history: The file of held-out distances.
            distiller: The method.
            ema: The student's EMA.
            step: The training step.
            seconds: Training time so far.
            trackers: accelerate's trackers.
            chosen: What `outcome.choose_ema` found, which is part of the record.

        Returns:
            The record: step, seconds, held_out_frechet by number of steps, and the key of the held-out evaluation.
        """
        times = distiller.sampling_schedules()[0]
        chosen = chosen or {"held_out_frechet": self.held_out.distances(distiller, ema)}
        rows = {f"student, {steps_text(n)}": (ema, times[:n]) for n in distiller.step_counts(times)}
        rows |= {name: (denoiser, times[:1]) for name, denoiser in distiller.preview_models().items()}
        grid, samples = self.grid(step, rows)
        record = {"step": step, "seconds": round(seconds, 2), **chosen, "evaluation": self.held_out.key}
        if self.held_out.writes:
            history.append(record)
            self._log(record, trackers, grid, dict(zip(["teacher", *rows], samples, strict=True)))
        return record

    def _log(
        self, record: Mapping[str, Any], trackers: Sequence[Any], grid: Tensor, samples: Mapping[str, Tensor]
    ) -> None:
        step, distances = record["step"], {n: _number(d) for n, d in record["held_out_frechet"].items()}
        listed = ", ".join(f"{distance:.3f} ({steps_text(int(n))})" for n, distance in distances.items())
        tqdm.write(f"step {step}: held-out Frechet distance to the teacher {listed}")
        with warn_if_unwritable(f"the trackers' record of step {step}"):
            for tracker in trackers:
                tracker.log({f"held_out_frechet/{n}": distance for n, distance in distances.items()}, step=step)
            log_image(trackers, "samples", grid, step)
            log_media(trackers, "samples", samples, step, self.medium)


def _number(distance: float | None) -> float:
    return math.inf if distance is None else distance
