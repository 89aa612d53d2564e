"""Embedded model server: TensorFlow Serving's gRPC and REST API over numbered SavedModel folders.

Run it with `python -m serving.server --model-dir DIR`, or embed `serving.server.model_server.ModelServer`. It imports
nothing of the pipeline: the contract between both is the SavedModel and TensorFlow Serving's protocol.
"""
