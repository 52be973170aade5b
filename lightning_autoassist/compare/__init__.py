"""Runs side by side: what ``autoassist compare`` does.

``readers.py`` reads what the W&B, TensorBoard and CSV loggers left; only ``run_files.py`` opens files. ``groups.py``
tells which runs are seeds of one another, ``comparison.py`` compares the groups, and ``tables.py``, ``picture.py`` and
``page.py`` show the comparison.
"""
