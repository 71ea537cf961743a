"""The state of the fleet as a whole: membership, counts, metrics."""
