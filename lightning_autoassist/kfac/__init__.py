"""K-FAC for any LightningModule, distributed as KAISA does it: ``callback.py`` is the way in.

A layer's curvature is approximated by a Kronecker product A⊗G of two small matrices: ``layer_kinds.py`` says which rows
of a layer enter them, ``factors.py`` keeps their running means, ``inverses.py`` inverts them, ``step_sizes.py`` chooses
how far to go. ``preconditioner.py`` does all this for the layers of one optimizer, and knows no Trainer. Which process
does what is in ``assignment.py``, what they send each other in ``communication.py``.

Sources: Martens & Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, ICML 2015,
arXiv:1503.05671. Grosse & Martens, A Kronecker-factored Approximate Fisher Matrix for Convolution Layers, ICML 2016,
arXiv:1602.01407. Pauloski et al., KAISA: An Adaptive Second-Order Optimizer Framework for Deep Neural Networks, SC
2021, arXiv:2107.01739. Eschenhagen et al., Kronecker-Factored Approximate Curvature for Modern Neural Network
Architectures, NeurIPS 2023, arXiv:2311.00636.
"""
