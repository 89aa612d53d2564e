"""The TFRS model: towers, retrieval task and rating task as Keras layers."""
