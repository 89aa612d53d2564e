"""Transform: the recipe's features as a TensorFlow Transform graph."""
