"""Configuration of the server: command-line options and TensorFlow Serving's configuration files."""
