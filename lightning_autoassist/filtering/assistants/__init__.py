"""Assistants: what predicts how much an instance would still teach the model."""
