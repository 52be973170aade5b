"""Assistants: what predicts how much an instance would still teach the model. One file each.

``base.py`` is the class to inherit from, ``registry.py`` has their names. Users import them from
``lightning_autoassist.assistants``.
"""
