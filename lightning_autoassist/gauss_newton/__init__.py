r"""Gauss-Newton steps from the Gram matrix of the Jacobian, which is never formed.

``jacobian.py`` has the products with the Jacobian of linear layers, ``sketches.py`` the fast Johnson-Lindenstrauss
transforms of it, ``preconditioners.py`` what is made of them, ``conjugate_gradients.py`` and ``solvers.py`` the linear
algebra. ``two_layer.py`` is the paper's network and algorithm as they stand; ``without_sklearn.py`` is for where
scikit-learn is not installed.

``callback.py`` trains modules of linear layers: ``fit_checks.py`` says which, ``step_tape.py`` notes what a training
step computes, ``instance_rows.py`` makes rows of the system of it, ``gathering.py`` joins those of accumulated batches
and of processes, ``window.py`` solves for a step, and ``damping.py`` judges it.

Source: Brand, Peng, Song & Weinstein, Training (Overparametrized) Neural Networks in Near-Linear Time, ITCS 2021,
arXiv:2006.11648.
"""
