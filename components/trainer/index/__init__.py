"""Retrieval indexes: exact search and the IVF index."""
