"""From the user's order of candidates to batches of kept instances.

One pipeline, in ``candidates.py``: a source gives candidates, a selector says how likely each is kept
(``selection.py``), and a batcher (``batchers.py``) puts the kept ones together, by their number or by tokens.
``index_batches.py`` and ``token_batches.py`` are for data sets, whose source is ``index_source.py``; ``row_stream.py``
is for streams, whose source is ``row_source.py``. ``sharding.py`` says which process owns an instance.
"""
