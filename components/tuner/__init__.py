"""Tuner: a search for better values of the recipe's keys, before the Trainer."""
