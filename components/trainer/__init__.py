"""Trainer: the two-task recommender, its training loop and its export for TensorFlow Serving.

The examples in docstrings use `recipe`, `schema`, `transform_output`, the output of Transform, `data`, the train split
as `TrainingData`, `model`, a `TwoTaskRecommender`, and `served`, its `ServedRecommender`. A test runs them all.
"""
