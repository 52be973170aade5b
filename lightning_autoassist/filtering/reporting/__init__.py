"""What a run reports of itself.

``metrics.py`` counts over a run and an epoch, ``counts.py`` for each instance and class. ``loggers.py`` decides what
loggers get; how it looks is in ``wandb_log.py`` and ``tensorboard_log.py``, with ``pictures.py`` and
``reliability.py``. Loggers that raise are handled in ``logger_guard.py``.
"""
