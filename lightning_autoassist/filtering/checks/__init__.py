"""Checks at the start of fit: what the Trainer's limits and schedules come to when instances are dropped.

``run_length.py`` counts updates and epochs, ``schedules.py`` simulates learning-rate schedules.
"""
