"""What there is to know on a GPU, by one command."""
