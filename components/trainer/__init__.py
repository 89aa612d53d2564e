"""The two-task TFRS model: data, towers, training and the exported SavedModel."""
