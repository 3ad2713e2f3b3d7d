"""Paths of the checkout, and overrides with which a recipe trains in a test: small, silent, saved often."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "pocket"
PLUGIN = ROOT / "tests" / "plugin"


FAST = [
    "train.batch_size=4",
    "train.evaluate_every=0",
    "train.evaluate_samples=6",
    "train.evaluate_teacher_steps=2",
    "train.checkpoint_every=2",
    "train.tracker=none",
]
