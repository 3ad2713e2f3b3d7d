"""Overrides with which a recipe trains in a test: small, silent, saved often."""

FAST = [
    "train.batch_size=4",
    "train.evaluate_every=0",
    "train.evaluate_samples=6",
    "train.evaluate_teacher_steps=2",
    "train.checkpoint_every=2",
    "train.tracker=none",
]
