"""Checks at the start of fit: what a Trainer's limits and schedules come to when instances are dropped."""
