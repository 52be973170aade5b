"""Local learning: blocks of layers trained by losses of their own, without backpropagation between them.

Source: Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv:2012.03837.

``callback.py``: what users give to the Trainer; ``step_trace.py`` and ``program.py``: how the returned loss follows
from the network's outputs and the batch, and how it is computed from a head's output instead; ``watched_calls.py``,
``separators.py`` and ``cuts.py``: where the network can be cut, and where it is; ``heads.py`` and
``head_training.py``: the networks that make a loss of a block's output; ``local_steps.py``: what happens in a training
step.
"""
