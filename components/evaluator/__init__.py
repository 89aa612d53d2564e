"""The gate: TFMA on the exported model's own signature, and the verdict in words."""
