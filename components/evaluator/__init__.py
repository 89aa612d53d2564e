"""Evaluator: TFMA on the `evaluate` signature of the exported model, and the results of the recipe's gates."""
