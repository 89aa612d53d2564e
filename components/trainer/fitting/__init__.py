"""Training: the training loop, optimizers, validation metrics and learning curves."""
