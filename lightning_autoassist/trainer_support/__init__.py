"""What is needed of Lightning's and torch's insides, and what every room needs.

``internals.py`` and ``autograd_internals.py``: all that is private to them; ``variants.py``: both packages of
Lightning; ``process_group.py``: the processes of a run; ``executors.py``: the thread beside the training loop;
``rng.py``: states of random generators; ``batch_parts.py``: the tensors of any batch; ``arguments.py``: checks of what
constructors are given.
"""
