"""What runs inside each step of the DAG; one folder a component, in the DAG's order.

TensorFlow Recommenders needs Keras 2 (`tf-keras`), and TensorFlow decides between Keras 2 and 3 when it is imported.
This is the one place that tells it, so every process that imports a component gets the same Keras.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
