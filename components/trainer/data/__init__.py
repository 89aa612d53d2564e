"""Transformed examples as arrays and training batches."""
