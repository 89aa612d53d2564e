"""The pipeline: the DAG, its runners, and the runs of a work folder."""

# Before anything here imports TensorFlow: `components` decides which Keras it brings.
import components  # noqa: F401
