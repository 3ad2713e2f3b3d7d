"""The previews of a run's evaluations."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from distill.data import dataset
from distill.training.held_out import HeldOut
from distill.training.jsonl_log import JsonlLog
from distill.training.monitor import Monitor
from distill.training.setup import load_teacher, plan_data
from teachers.media import Image

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


def test_an_evaluation_is_recorded_and_printed_with_its_numbers_of_steps(tmp_path, monkeypatch, capsys):
    held_out = SimpleNamespace(teacher=SimpleNamespace(medium=Image(8, 8)), writes=True, key="abc")
    picture = torch.zeros(1, 3, 8, 8)
    monkeypatch.setattr(Monitor, "grid", lambda self, step, rows: (picture[0], [picture] * (1 + len(rows))))
    distiller = SimpleNamespace(
        sampling_schedules=lambda: [[1.5, 0.5]], step_counts=lambda times: (1, 2), preview_models=dict
    )
    history = JsonlLog(tmp_path / "history.jsonl", 0, "run")
    chosen = {"held_out_frechet": {"1": 0.5, "2": None}}
    record = Monitor(tmp_path, held_out).evaluate(history, distiller, None, 3, 1.234, [], chosen)
    assert record == {"step": 3, "seconds": 1.23, **chosen, "evaluation": "abc"} and history.last == 3
    assert "step 3: held-out Frechet distance to the teacher 0.500 (1 step), inf (2 steps)" in capsys.readouterr().out
