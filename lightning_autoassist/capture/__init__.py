"""What a training step computed: which losses it called, and which part of them is which instance's.

Nothing in here knows a Trainer or a callback. ``loss_capture.py`` is the way in; ``captured_step.py`` watches one step.
Losses written by hand are in ``reductions.py``, weights that enter the backward pass in ``loss_weights.py``. Whose a
row of a loss is: by shape and order in ``instance_layout.py``, by values in ``row_matching.py``, followed through the
step in ``row_order.py`` and ``row_propagation.py``.
"""
