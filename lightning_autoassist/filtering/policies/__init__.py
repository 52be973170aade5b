"""Policies: from predicted scores to keep probabilities. One file each; ``registry.py`` has their names.

``base.py`` is the class to inherit from. Users import them from ``lightning_autoassist.policies``.
"""
