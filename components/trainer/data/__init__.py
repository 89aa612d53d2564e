"""Training data: transformed examples as arrays, user histories, and batches."""
