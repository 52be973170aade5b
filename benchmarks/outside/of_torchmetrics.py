"""torchmetrics' functions that are trained on as losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.outside.cases import Setup, case, cases, integers, loaders, normal
from benchmarks.outside.steps import Step, perceptron, pixel_net

PACKAGE = "torchmetrics"
OF_NUMBERS = (
    "cosine_similarity",
    "explained_variance",
    "log_cosh_error",
    "mean_absolute_error",
    "mean_squared_error",
    "mean_squared_log_error",
    "pearson_corrcoef",
)


@cases(PACKAGE, OF_NUMBERS, "loss")
def of_numbers(name: str) -> Setup:
    """Predictions against values."""
    from torchmetrics import functional

    is_of_rows = name == "cosine_similarity"
    options = {"reduction": "mean"} if is_of_rows else {}
    sign = -1 if name in ("cosine_similarity", "explained_variance", "pearson_corrcoef") else 1

    def line(step: Any, batch: Any) -> Tensor:
        predicted = step.net(batch[0])
        if name == "mean_squared_log_error":
            predicted = predicted.exp()
        return sign * getattr(functional, name)(predicted if is_of_rows else predicted.squeeze(1), batch[1], **options)

    target = normal(5) if is_of_rows else normal().exp()
    return Setup(lambda: Step(line, net=perceptron(6, 5 if is_of_rows else 1)), loaders((normal(6), target)))


@case(PACKAGE, "structural_similarity_index_measure", "loss")
def pictures() -> Setup:
    """Two pictures an instance."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    def line(step: Any, batch: Any) -> Tensor:
        return 1 - structural_similarity_index_measure(step.net(batch[0]).sigmoid(), batch[1], data_range=1.0)

    def by_hand(step: Any, batch: Any) -> Tensor:
        # Without the 1, which is no instance's.
        predicted = step.net(batch[0]).sigmoid()
        return -structural_similarity_index_measure(predicted, batch[1], data_range=1.0, reduction="none")

    columns = normal(1, 16, 16), normal(1, 16, 16).mul(0.3).add(0.5).clamp(0, 1)
    return Setup(lambda: Step(line, net=pixel_net(1, 1)), loaders(columns), by_hand)


@case(PACKAGE, "multiclass_hinge_loss", "loss")
def hinge() -> Setup:
    """Margins of classes."""
    from torchmetrics.functional.classification import multiclass_hinge_loss

    def line(step: Any, batch: Any) -> Tensor:
        return multiclass_hinge_loss(step.net(batch[0]).softmax(1), batch[1], num_classes=3)

    return Setup(lambda: Step(line, net=perceptron(6, 3)), loaders((normal(6), integers(3))))


@case(PACKAGE, "scale_invariant_signal_distortion_ratio", "loss")
def sound() -> Setup:
    """Sound, one ratio an instance, its mean."""
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    def line(step: Any, batch: Any) -> Tensor:
        return -scale_invariant_signal_distortion_ratio(step.net(batch[0]), batch[1]).mean()

    return Setup(lambda: Step(line, net=perceptron(20, 20)), loaders((normal(20), normal(20).flip(0))))


@case(PACKAGE, "perplexity", "loss")
def perplexity() -> Setup:
    """The exponential of the tokens' mean cross-entropy: no sum over instances."""
    from torchmetrics.functional.text import perplexity as of_tokens

    def line(step: Any, batch: Any) -> Tensor:
        return of_tokens(step.net(batch[0]), batch[1])

    return Setup(lambda: Step(line, net=perceptron(6, 9)), loaders((normal(4, 6), integers(9, 4))))
