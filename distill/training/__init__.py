"""Parts of the training loop: state, engine, checkpoints, guards, optimizers, evaluation."""
