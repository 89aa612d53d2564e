"""The report of a run as one HTML file, from ML Metadata and the run's artifacts."""
