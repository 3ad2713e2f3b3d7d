"""The previews of a run's evaluations."""

import pytest
import torch
from accelerate import Accelerator

from distill.data import dataset
from distill.training.held_out import HeldOut
from distill.training.monitor import Monitor
from distill.training.setup import load_teacher, plan_data

CPU = torch.device("cpu")


@pytest.mark.slow
def test_previews_show_prompts_from_everywhere_in_sorted_data(two_step_recipe, text_pipeline, monkeypatch):
    """Files are often sorted by class: the first prompts would show one class only."""
    words = ["data.prompts=pocket", "train.evaluate_samples=32", "train.evaluate_teacher_steps=2"]
    recipe = two_step_recipe("stable_diffusion", text_pipeline, *words)
    teacher = load_teacher(recipe, CPU)
    data = dataset.prepare(plan_data(recipe), teacher, recipe, Accelerator(cpu=True))
    shown, held_out = [], dataset.Dataset.held_out

    def recorded(self, count):
        cond = held_out(self, count)
        return lambda indices: shown.append(indices) or cond(indices)

    monkeypatch.setattr(dataset.Dataset, "held_out", recorded)
    monitor = Monitor(recipe.folder, HeldOut(recipe, teacher, data, "pixels", CPU))
    shown.clear()
    grid, samples = monitor.grid(0, {"student": (teacher.denoiser, [teacher.denoiser.path.t_max])})
    assert torch.cat(shown).tolist() == list(range(0, 32, 4))
    assert grid.shape == (3, 2 * 32, 8 * 32) and [len(row) for row in samples] == [8, 8]
