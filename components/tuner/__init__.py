"""Tuner: hyperparameter search over the recipe's keys with KerasTuner, before the Trainer."""
