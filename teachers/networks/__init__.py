"""Changes to networks for training: LoRA adapters, half-precision storage, activation checkpointing, offloading."""
