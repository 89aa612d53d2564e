"""Retrieval indexes of the served model: exact and inverted file (IVF), in plain TensorFlow ops."""
