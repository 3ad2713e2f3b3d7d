"""Networks in training (LoRA adapters, half-precision storage, checkpointing, offloading), and parts of judges."""
