"""The model server: versions of SavedModels, their lifecycle, warm-up and request batching."""
