"""Finds the model that a push would replace, so that the Evaluator can compare the candidate with it."""
