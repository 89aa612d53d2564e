"""The model server process: versions of SavedModels, their lifecycle, warm-up and request batching."""
