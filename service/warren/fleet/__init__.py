"""What is known of all workers together: membership, counts, metrics."""
