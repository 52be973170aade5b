"""A network with one hidden layer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, RunningMean, UpdateResult
from lightning_autoassist.filtering.assistants.mlp_trainers import (
    AdamTrainer,
    GaussNewtonTrainer,
    WeightTrainer,
    outputs_of,
)
from lightning_autoassist.filtering.memory.classes import class_indices
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.trainer_support.arguments import check_choice, check_number, check_whole

TrainerName = Literal["adam", "gauss_newton"]
# By benchmarks/gauss_newton, on ranking instances by their losses.
BEST_TRAINER: TrainerName = "adam"


class MLPAssistant(Assistant):
    r"""Predicts the score by a small network, :math:`\bar{s}\,v \cdot \mathrm{relu}(W z + E_y + c)`.

    z are the features, scaled to zero mean and unit variance as seen so far; E has a row for each class, and
    :math:`\bar{s}` is the running mean of the scores, so that step sizes do not depend on their unit. One step on the
    mean squared error, in units of :math:`\bar{s}`, follows each batch of the model.

    Source: the paper's idea of a light model, with one hidden layer in place of none; Adam: Kingma & Ba, ICLR 2015,
    arXiv:1412.6980.

    Args:
        num_hidden: H, at least 1.
        lr: Step size of Adam, positive.
        trainer: ``"adam"``; ``"gauss_newton"``: parts of damped Gauss-Newton steps; ``"auto"``: what was measured to be
            better, which is Adam.
        damping: Of Gauss-Newton, positive, relative to the mean of the Gram matrix's diagonal.
        step_ratio: How much of each Gauss-Newton step is made, in (0, 1].
        mean_decay: Decay of the running means of the scores and of the features' moments, per batch, in [0, 1).
        seed: Of the first weights; the global RNG stays untouched.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> assistant, batch = MLPAssistant(), Instances(torch.tensor([[1.0], [-1.0]]))
        >>> for _ in range(300):
        ...     outcome = assistant.update(batch, scores=torch.tensor([2.0, 0.0]))
        >>> assistant.predict(batch).round(decimals=1)
        tensor([2., 0.])
    """

    required_columns = ("features", "labels")
    max_classes = 1024  # rows of E: one for those without a class, and classes beyond the others share them

    def __init__(
        self,
        num_hidden: int = 32,
        lr: float = 3e-3,
        mean_decay: float = 0.95,
        seed: int = 0,
        *,
        trainer: TrainerName | Literal["auto"] = "auto",
        damping: float = 0.01,
        step_ratio: float = 0.1,
    ) -> None:
        self.num_hidden = check_whole("num_hidden", num_hidden, "[1, inf)", "try 32")
        self.lr = check_number("lr", lr, "(0, inf)", "try 3e-3")
        self.seed = check_whole("seed", seed, "[0, inf)", "0 is the default")
        chosen: TrainerName | Literal["auto"] = check_choice("trainer", trainer, ("auto", "adam", "gauss_newton"))
        self.trainer: TrainerName = BEST_TRAINER if chosen == "auto" else chosen
        self.damping = check_number("damping", damping, "(0, inf)", "0.01 is the default")
        self.step_ratio = check_number("step_ratio", step_ratio, "(0, 1]", "0.1 is the default")
        self.mean_score = RunningMean(mean_decay)
        self.centre = torch.zeros(0)  # of the features, (F,)
        self.square = torch.zeros(0)  # mean of the features' squares, (F,)
        # W (F, H), E (C, H) with a last row for those without a class, c (H,), v (H,); sizes from the first batch.
        self.weights: dict[str, Tensor] = {}
        self._trainer: WeightTrainer | None = None

    @override
    def predict(self, instances: Instances) -> Tensor:
        return self._predicted(*self._inputs(instances))

    # Steps that were put off may be learnt from during validation, in Lightning's inference mode.
    @torch.inference_mode(False)
    @override
    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        features, classes = self._inputs(instances)
        predictions = self._predicted(features, classes)
        targets = scores > self.mean_score.update(scores)
        if self._trainer is None:
            self._begin(features)
        else:
            self._observe_features(features)
        assert self._trainer is not None
        unit = max(abs(self.mean_score.value or 0.0), 1e-12)
        self._trainer.step(self._scaled(features), classes, scores / unit)
        return UpdateResult(float((predictions - scores).abs().mean()), predictions, targets)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer,
            "mean_score": self.mean_score.value,
            "centre": self.centre.clone(),
            "square": self.square.clone(),
            "weights": {name: values.detach().clone() for name, values in self.weights.items()},
            "optimizer": {} if self._trainer is None else self._trainer.state_dict(),
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean_score.value = state["mean_score"]
        self.centre, self.square = state["centre"].clone(), state["square"].clone()
        self._train({name: values.clone() for name, values in state["weights"].items()})
        # Of another trainer, as of a run with other settings, the weights alone are of use.
        if self._trainer is not None and state.get("trainer", "adam") == self.trainer:
            self._trainer.load_state_dict(state["optimizer"])

    def _inputs(self, instances: Instances) -> tuple[Tensor, Tensor]:
        if instances.features is None:
            raise ValueError("MLPAssistant needs features, got instances without any; pass features=")
        classes = class_indices(instances, len(instances.features), self.max_classes - 1)
        return instances.features.float(), classes.where(classes >= 0, self.max_classes - 1)

    @torch.no_grad()
    def _predicted(self, features: Tensor, classes: Tensor) -> Tensor:
        if not self.weights:
            return torch.zeros(len(features))
        return (outputs_of(self.weights, self._scaled(features), classes) * (self.mean_score.value or 0.0)).clamp(min=0)

    def _scaled(self, features: Tensor) -> Tensor:
        variance = (self.square - self.centre.square()).clamp(min=0)
        # A feature that never changes stays at 0, and counts one day when it does.
        return (features - self.centre) / (variance + 1e-6).sqrt()

    def _observe_features(self, features: Tensor) -> None:
        decay = self.mean_score.decay
        self.centre = decay * self.centre + (1 - decay) * features.mean(0)
        self.square = decay * self.square + (1 - decay) * features.square().mean(0)

    def _begin(self, features: Tensor) -> None:
        self.centre, self.square = features.mean(0), features.square().mean(0)
        generator, num_features = torch.Generator().manual_seed(self.seed), features.shape[1]
        weights = {
            "W": torch.randn(num_features, self.num_hidden, generator=generator) * (2 / num_features) ** 0.5,
            "E": torch.zeros(self.max_classes, self.num_hidden),
            "c": torch.zeros(self.num_hidden),
            "v": torch.rand(self.num_hidden, generator=generator) / self.num_hidden,
        }
        self._train(weights)

    def _train(self, weights: dict[str, Tensor]) -> None:
        """Learn ``weights`` from now on; empty before the first batch."""
        self.weights = weights
        if not weights:
            self._trainer = None
        elif self.trainer == "adam":
            self._trainer = AdamTrainer(weights, self.lr)
        else:
            self._trainer = GaussNewtonTrainer(weights, self.damping, self.step_ratio)
