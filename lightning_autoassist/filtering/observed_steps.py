"""What the training steps show of their instances: which rows are whose, and what each instance's loss was.

Shapes: B batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.capture.captured_step import CapturedStep
from lightning_autoassist.capture.interceptor import TrainingStep, observe_training_steps
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.capture.observation import InstanceLosses
from lightning_autoassist.filtering.data.arrivals import TransferOrder, hooks_of
from lightning_autoassist.filtering.guard import Guard
from lightning_autoassist.filtering.layer_scores import NO_NORMS, LayerScores
from lightning_autoassist.filtering.names import ReweightingName, ScoreName
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.filtering.selector import InstanceSelector
from lightning_autoassist.trainer_support.arrays import on_device
from lightning_autoassist.trainer_support.variants import LightningModule

# So many batches in a row pass unfiltered before filtering stops, where their rows cannot be told apart.
MOST_UNKNOWN = 16


class Answer(NamedTuple):
    """What one step showed, until its batch has ended.

    Attributes:
        draw: The batch's instances.
        observation: Their losses and scores.
        features: Features of shape ``(B, F)``, or rows of tokens; None where they are remembered already.
    """

    draw: SelectedBatch
    observation: InstanceLosses
    features: Tensor | None


class ObservedSteps:
    """Observes the training steps of a fit: captures the instances' losses, and weights them where weights are on.

    Args:
        score: What the scores are.
        selector: Is told whether the losses could be assigned to instances.
        report: Gets the share of the loss that was captured, and the time that this takes.
        keeps_answers: Whether anybody asks for them.

    Attributes:
        capture: Finds the losses.
        draw: What the current batch was drawn with; None where it was not drawn here.
        answer: What the current batch's step showed; None where there is nothing.
        reason: Why the losses of the latest observed step could not be assigned to instances; None where they could.
    """

    def __init__(
        self,
        score: ScoreName,
        selector: InstanceSelector,
        report: FilterReport,
        *,
        keeps_answers: bool,
    ) -> None:
        is_of_layers = score == "layer_gradient_norm"  # known after backward alone
        self.capture = InstanceLossCapture(score="loss" if is_of_layers else score)
        self.draw: SelectedBatch | None = None
        self.answer: Answer | None = None
        self.reason: str | None = None
        self._selector = selector
        self._report = report
        self._keeps_answers = keeps_answers
        self._scores_layers = is_of_layers and keeps_answers
        self._layers: LayerScores | None = None
        self._has_layers: bool | None = None  # known from the first step on
        self._module: Any = None
        self._transfers = TransferOrder([])
        self._num_unknown = 0  # batches in a row
        self._remove: Callable[[], None] | None = None

    @property
    def _guard(self) -> Guard:
        return self._selector.status.unfiltered_on_error

    def begin(self, strategy: Any, module: LightningModule, user_data: Any) -> None:
        """Observe the steps of a fit, until :meth:`end`.

        Args:
            strategy: The Trainer's.
            module: The model.
            user_data: The user's data module or module, whose hooks get the batches.
        """
        self._module = module
        self._transfers = TransferOrder(hooks_of(module, user_data))
        self._remove = observe_training_steps(strategy, self._run)
        if self._scores_layers:
            self._layers, self._has_layers = LayerScores(module, self._guard, self._report.timed), None

    def end(self) -> None:
        """Observe no more steps."""
        if self._remove is not None:
            self._remove()
        if self._layers is not None:
            self._layers.close()
        self._remove = self._layers = self._module = self.answer = self.draw = None

    def start_batch(self, draw: SelectedBatch | None) -> None:
        """A batch is on its way to its step.

        Args:
            draw: What it was drawn with, which came with it; None where it was not drawn here.
        """
        self.draw, self.answer = draw, None

    def end_batch(self) -> tuple[SelectedBatch | None, Answer | None]:
        """What the current batch was drawn with, and what its step showed; the batch has ended."""
        draw, answer = self.draw, self.answer
        self.draw = self.answer = None
        if self._layers is not None:
            with self._report.timed():
                answer = self._with_norms(self._layers, answer)
        return draw, answer

    def normalize_weights(self) -> None:
        """Use ``reweighting="normalized"`` from now on, with one warning where nothing else has said why.

        It keeps the balance between the instances' losses and terms of the loss that have no instances.
        """
        reweighting = self._selector.reweighting
        if reweighting == "normalized":
            return
        self._selector.reweighting = "normalized"
        missed = "; ".join(self.capture.share.missed)
        terms = missed or "which depend on the parameters alone, as a penalty on the weights does"
        if not (missed and self.capture.is_share_told):
            rank_zero_warn(
                f"the loss has terms beside the instances' own ({terms}). {_why_normalized_weights(reweighting)}"
            )

    def _run(self, step: TrainingStep) -> Any:
        draw = self.draw
        if draw is None or not self._selector.is_filtering or not self._knows_rows(draw, step.batch):
            return step.run()
        if not self._knows_layers():
            return step.run()
        with self._report.timed():
            features = self._selector.new_features(draw, step.batch)
            weights = None if draw.weights is None else on_device(torch.from_numpy(draw.weights), self._module.device)
            margins = self._selector.keeps_dynamics and draw.rows is None  # a stream's instances have no dynamics
            captured = self.capture.step(
                step.batch, len(draw.indices), weights=weights, module=self._module, margins=margins
            )
        with captured:
            output = step.run() if self._layers is None else self._layers.observe(step, len(draw.indices), weights)
        with self._report.timed():
            self._observe(captured, output, draw, features)
        return output

    def _knows_layers(self) -> bool:
        """Whether the model has the layers that the scores are of, where they are of any."""
        if self._layers is None:
            return True
        if self._has_layers is None:
            refusal = self._layers.refusal
            self._has_layers = refusal is None
            if refusal is not None:
                self._selector.status.stop(refusal)
        return self._has_layers

    def _with_norms(self, layers: LayerScores, answer: Answer | None) -> Answer | None:
        """An answer with its scores, once backward has run; None where they are not known."""
        norms = None
        with self._guard:
            norms = layers.end_step()
        if answer is None or not self._selector.is_filtering:
            return None
        if norms is None:
            self._selector.status.note_untold(NO_NORMS)
            return None
        self._selector.status.note_told()
        return answer._replace(observation=answer.observation._replace(scores=norms))

    def _knows_rows(self, draw: SelectedBatch, batch: Any) -> bool:
        """Whether the rows of the batch are the draw's instances."""
        self._num_unknown = 0 if draw.knows_rows else self._num_unknown + 1
        refusal = self._transfers.refusal(draw, batch) if draw.knows_rows else None
        if self._num_unknown == MOST_UNKNOWN:
            refusal = (
                f"In {MOST_UNKNOWN} batches in a row the loader's collate_fn reordered instances or left some out, and "
                "the values of the batch do not tell which of its rows is which instance."
            )
        if refusal is not None:
            self._selector.status.stop(refusal)
        return draw.knows_rows and refusal is None

    def _observe(self, captured: CapturedStep, output: Any, draw: SelectedBatch, features: Tensor | None) -> None:
        observation = captured.observe(output)
        self.reason = captured.reason
        if output is None and self._module.automatic_optimization:
            return  # Lightning skips the batch, and so do we
        if observation is None:
            status = self._selector.status
            give_up = status.stop if captured.is_final else status.note_untold
            give_up(captured.reason or "no per-instance loss was found in training_step")
            return
        if self._layers is None:  # else they are told once there are norms
            self._selector.status.note_told()
        self._note_share()
        if self._keeps_answers:
            self.answer = Answer(draw, observation, features)

    def _note_share(self) -> None:
        self._report.captured_share = self.capture.share.ratio
        note = self.capture.note_on_share()
        if note is not None:
            rank_zero_warn(
                note
                if self._selector.reweighting in ("none", "normalized")
                else f"{note}. {_why_normalized_weights(self._selector.reweighting)}"
            )


def _why_normalized_weights(reweighting: ReweightingName) -> str:
    """Why another reweighting than "normalized" does not suit a loss with terms that have no instances."""
    return (
        f'With reweighting="{reweighting}" filtering would shift the balance between them and the instances\' losses, '
        'so reweighting="normalized" is used'
    )
