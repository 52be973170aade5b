"""What is remembered of the instances."""
