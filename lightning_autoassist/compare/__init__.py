"""Runs side by side: what ``autoassist compare`` does.

``readers.py`` reads what W&B, TensorBoard and CSV loggers left, ``comparison.py`` compares, ``tables.py`` and
``page.py`` show it. Files of strangers are opened in ``run_files.py`` only.
"""
