"""From the user's order of candidates to batches of kept instances."""
