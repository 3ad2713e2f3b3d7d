"""Changes to networks for training: LoRA adapters, storage precision, checkpointing, offloading."""
