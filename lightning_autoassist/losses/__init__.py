"""The mathematics of torch's losses, without any Trainer.

``functional.py`` holds the table of the loss functions that are known, with their values by element and the norms of
their gradients.
"""
