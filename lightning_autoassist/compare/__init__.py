"""Runs side by side: readers, comparison, page."""
