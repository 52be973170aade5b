"""The data module, and the loaders whose batches carry what is known of their instances.

``data_module.py`` wraps the user's data, ``forwarding.py`` passes on what is theirs, ``loader_building.py`` makes the
train loader, ``position.py`` keeps its place. ``loader.py`` loads batches of indexed data, ``stream_loader.py`` those
of data without indices; ``plain_batches.py`` passes the user's own batches on. ``collation.py`` and ``arrivals.py``
tell whether a batch's rows are still in the order in which they were drawn.
"""
