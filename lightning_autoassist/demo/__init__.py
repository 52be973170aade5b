"""The demo: a small network trained by each method."""
