"""Accuracy of small image classifiers against the updates they got."""
