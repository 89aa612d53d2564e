"""The report of a run: gathered from ML Metadata and the run's artifacts, drawn as one HTML page."""
