"""What the DAG is and how it is run: recipe, DAG, runners and the `tandem` command."""

# Before anything here imports TensorFlow: `components` decides which Keras it brings.
import components  # noqa: F401
