"""From the user's order of candidates to batches of kept instances.

``selection.py`` is what is asked of whoever selects. ``candidates.py`` is what every kind has: counts, weights, drawn
batches. ``index_batches.py`` makes batches of a fixed size, ``token_batches.py`` batches by tokens, ``row_stream.py``
batches of a stream's rows, which are read in ``stream_reading.py`` and wait in ``waiting_rows.py``. ``sharding.py``
says which process owns an instance.
"""
