"""The demo's long-tailed digits: its learning rates, and ten seeds of each method."""
