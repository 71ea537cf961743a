"""From a delivery to its settlement."""
