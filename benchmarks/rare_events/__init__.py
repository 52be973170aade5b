"""Rare events: average precision of a small network where one instance in sixty, or in two hundred, is a positive."""
