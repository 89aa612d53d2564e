"""Brings the curated schema into the pipeline."""
