"""The training loop: `run_fn`, optimizers, validation and learning curves."""
