"""pytorch-forecasting: its models, of ``lightning.pytorch``, over its own data set of windows of series."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.outside.cases import NUM_INSTANCES, Setup, cases

PACKAGE = "pytorch-forecasting"
ENCODED, PREDICTED = 6, 3
NUM_SERIES = 4
LENGTH = NUM_INSTANCES // NUM_SERIES + ENCODED + PREDICTED - 1
MODELS: dict[str, dict[str, Any]] = {
    "DecoderMLP": {"hidden_size": 8},
    "DeepAR": {"hidden_size": 8, "rnn_layers": 1},
    "NBeats": {"stack_types": ["generic"], "num_blocks": [1], "num_block_layers": [1], "widths": [8]},
    "NBeatsKAN": {"stack_types": ["generic"], "num_blocks": [1], "num_block_layers": [1], "widths": [8]},
    "NHiTS": {"hidden_size": 8, "n_blocks": [1, 1, 1]},
    "RecurrentNetwork": {"hidden_size": 8, "rnn_layers": 1},
    "TemporalFusionTransformer": {"hidden_size": 8, "attention_head_size": 1, "hidden_continuous_size": 4},
    "TiDEModel": {"hidden_size": 8},
}
# Other losses than the model's own, in one model.
LOSSES = ("MAE", "MAPE", "MASE", "PoissonLoss", "QuantileLoss", "RMSE", "SMAPE")


@functools.cache
def _windows(model: str) -> Any:
    """All windows of some random walks, as many as the other cases have instances."""
    import pandas as pd
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data import GroupNormalizer

    walks = np.random.default_rng(0).normal(size=(NUM_SERIES, LENGTH)).cumsum(1) + 20
    table = pd.DataFrame(
        {
            "time": np.tile(np.arange(LENGTH), NUM_SERIES),
            "series": np.repeat([f"s{number}" for number in range(NUM_SERIES)], LENGTH),
            "value": walks.ravel(),
            "known": np.tile(np.sin(np.arange(LENGTH)), NUM_SERIES),
        }
    )
    options: dict[str, Any] = {}
    if not model.startswith("NBeats"):
        options = {"time_varying_known_reals": ["known"], "static_categoricals": ["series"]}
    return TimeSeriesDataSet(
        table,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=ENCODED,
        min_encoder_length=ENCODED,
        max_prediction_length=PREDICTED,
        min_prediction_length=PREDICTED,
        time_varying_unknown_reals=["value"],
        target_normalizer=GroupNormalizer(groups=["series"]),
        add_relative_time_idx=False,
        **options,
    )


def _setup(model: str, **options: Any) -> Setup:
    import pytorch_forecasting

    windows = _windows(model)

    def make_module() -> Any:
        net = getattr(pytorch_forecasting, model)
        return net.from_dataset(windows, learning_rate=1e-3, **MODELS[model], **options)

    def make_loader(batch_size: int, shuffle: bool) -> Any:
        return windows.to_dataloader(train=shuffle, batch_size=batch_size, num_workers=0)

    return Setup(make_module, make_loader, validates=True)


@cases(PACKAGE, MODELS, "module")
def model(name: str) -> Setup:
    """A model with the loss that is its own."""
    return _setup(name)


@cases(PACKAGE, [f"{name} of DecoderMLP" for name in LOSSES], "loss")
def loss(name: str) -> Setup:
    """Another loss."""
    from pytorch_forecasting import metrics

    criterion = getattr(metrics, name.partition(" ")[0])()
    num_quantiles = len(criterion.quantiles or [0.5])
    setup = _setup("DecoderMLP", loss=criterion, output_size=num_quantiles)
    # The root of a mean: its instances' part in it are their squares.
    return setup._replace(by_hand=_squares) if name.startswith("RMSE") else setup


def _squares(model: Any, batch: Any) -> Tensor:
    inputs, (target, _) = batch
    return (model.to_prediction(model(inputs)) - target).square().mean(1)
