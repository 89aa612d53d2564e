"""Stops the run when the data breaks the curated schema."""
