"""What is remembered of the instances between two of their batches.

``store.py`` has a row for each instance: features or tokens, label, last score. ``features.py`` and
``token_features.py`` take features and tokens from a batch; those that are too many for memory are in
``feature_file.py``. ``instances.py`` is what an Assistant gets of it.
"""
