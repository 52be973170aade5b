"""Accuracy of a small text classifier against the updates it got."""
