"""TensorFlow Serving's gRPC and REST API on loaded servables."""
