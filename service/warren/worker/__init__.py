"""The worker: from a delivery to its settlement."""
