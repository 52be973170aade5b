"""Beside the peers: what their authors' own code reaches, and what ours reaches with as many optimizer steps."""
