"""Policies: from predicted scores to keep probabilities."""
