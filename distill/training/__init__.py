"""What the training loop is made of: state, engine, checkpoints, guards, optimizers, monitoring."""
