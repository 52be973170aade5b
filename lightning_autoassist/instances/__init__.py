"""What a run taught about its data, from a checkpoint: a table and a page.

``places.py`` finds a checkpoint, ``checkpoints.py`` reads what it remembers, ``findings.py`` says what stands out,
``page.py`` and ``files.py`` write it.
"""
