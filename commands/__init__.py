"""The `tandem` command: what users type, and the code that serves commands only."""

# Before anything here imports TensorFlow: `components` decides which Keras it brings.
import components  # noqa: F401
