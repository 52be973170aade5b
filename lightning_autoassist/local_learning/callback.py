"""``LocalLearningCallback``: trains any LightningModule in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_autoassist.capture.interceptor import TrainingStep, observe_training_steps
from lightning_autoassist.local_learning.agreement import check_run, is_checkpoint_due, share_metrics
from lightning_autoassist.local_learning.cuts import described
from lightning_autoassist.local_learning.first_step import Plan
from lightning_autoassist.local_learning.fit_checks import (
    MODES,
    check_blocks,
    check_heads,
    check_optimizers,
    check_trainer,
    fine_tuning_start,
)
from lightning_autoassist.local_learning.heads import HeadFunction
from lightning_autoassist.local_learning.local_steps import LocalSteps
from lightning_autoassist.trainer_support.arguments import check_choice, check_number, check_whole
from lightning_autoassist.trainer_support.internals import is_logging_step, note_outputs_for_reduction
from lightning_autoassist.trainer_support.strategy_names import register
from lightning_autoassist.trainer_support.variants import STEP_OUTPUT, CallbackBase, LightningModule, Trainer

register()  # whoever needs the strategy by its name needs this callback, too

Mode = Literal["chunked", "greedy", "overlapping"]


class LocalLearningCallback(CallbackBase):
    r"""Trains a network in blocks, each by a loss of its own: less memory on one device, layers in parallel on several.

    Block :math:`k` gives :math:`z_k`. A head :math:`h_k` makes of it what the network's output is to the user's own
    loss, :math:`L_k = L(h_k(z_k), y)`. The block and its head are trained by :math:`\nabla L_k` alone, as soon as
    :math:`z_k` is there; the next block gets :math:`z_k` without a graph. The last block is trained by the returned
    loss as it is. So no more is saved for backward than one block needs. The first batch of a run is trained by
    backpropagation: from it the callback learns where to cut, and how the loss is computed.

    Heads and their optimizers belong to the callback: the module and its checkpoints keep their keys. Their optimizers
    are of the user's optimizer's class, and follow its settings at each step.

    Source: Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv:2012.03837.

    Args:
        blocks: How many blocks; the network is cut so that the bytes saved for backward are level. Or names of
            submodules: each one's output ends a block, and an empty list cuts nowhere. None: 4, or with
            ``mode="greedy"`` as many as there can be.
        heads: ``"linear"``: pooling and one layer; ``"conv"``: a convolution before them; ``"mlp_sr"``: that of
            decoupled greedy learning; or a function that gets the shapes of a block's and of the network's output,
            each without the batch's axis, and returns a module.
        mode: ``"chunked"``: as above; ``"greedy"``: each block is one layer with what follows it;
            ``"overlapping"``: each loss trains ``window`` blocks, its own and those before it.
        window: Blocks that a loss trains in ``mode="overlapping"``.
        fine_tune: Share of the optimizer steps, at the end of training, that are made by plain backpropagation.

    Raises:
        ValueError: If a name is unknown or a number outside its range.
        TypeError: If something is of another type.

    Example:
        >>> LocalLearningCallback(blocks=["layer1", "layer2"], heads="linear").blocks
        ('layer1', 'layer2')
    """

    def __init__(
        self,
        blocks: int | Sequence[str] | None = None,
        heads: str | HeadFunction = "conv",
        *,
        mode: Mode = "chunked",
        window: int = 2,
        fine_tune: float = 0.0,
    ) -> None:
        self.mode = check_choice("mode", mode, MODES)
        self.blocks = check_blocks(blocks, self.mode)
        self.heads = check_heads(heads)
        self.window = check_whole("window", window, "[2, inf)", "2 trains each block by its own loss and the next")
        self.fine_tune = check_number("fine_tune", fine_tune, "[0, 1]", "0.2 is a fifth of the steps")
        self._steps = LocalSteps(self.blocks, self.heads, self.window if self.mode == "overlapping" else 1)
        self._trainer: Any = None
        self._fine_tuning_start = float("inf")
        self._removers: list[Callable[[], None]] = []
        self._is_told = self._is_fine_tuning = False

    @property
    def plan(self) -> Plan | None:
        """Where the network is cut, and how many bytes and parameters each block has; None before the first step."""
        return self._steps.plan

    @property
    def saved_bytes(self) -> dict[int, int]:
        """Bytes that each block with its heads saves for backward, by the block's number from 0."""
        return dict(self._steps.saved_bytes)

    def head_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of all heads; none before the first step."""
        return self._steps.heads.parameters()

    # ---- connecting to the Trainer

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._trainer = trainer
        check_trainer(trainer, pl_module)
        self._steps.link = getattr(trainer.strategy, "layer_link", None)
        if self._steps.link is not None:
            check_run(trainer, self._steps.window)
        # The outermost observer: what others see is the loss that the user returned.
        self._removers.append(observe_training_steps(trainer.strategy, self._finish))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_optimizers(trainer)
        self._fine_tuning_start = fine_tuning_start(trainer, self.fine_tune)
        self._is_fine_tuning = False
        self._steps.begin(trainer.strategy, pl_module, trainer.optimizers[0])
        # The innermost observer: whatever others do to a step's losses, they do to those of blocks.
        self._removers.append(observe_training_steps(trainer.strategy, self._run))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._disconnect()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._disconnect()

    def _disconnect(self) -> None:
        while self._removers:
            self._removers.pop()()
        self._steps.end()

    # ---- steps

    @property
    def _is_local(self) -> bool:
        """Whether the next step is made in blocks."""
        return self.blocks != () and self._trainer.global_step < self._fine_tuning_start

    def _run(self, step: TrainingStep) -> Any:
        if not self._is_local:
            self._begin_fine_tuning()
            return step.run()
        if self._steps.plan is None:
            return self._steps.watch(step)
        output = self._steps.train(step)
        if self._steps.programs.why_of_one_step is not None and not self._is_told:
            self._is_told = True
            rank_zero_warn(
                f"Local learning saves no memory in this run: {self._steps.programs.why_of_one_step}, so that blocks "
                "can be trained only when the step's own loss is there. Targets that the batch holds, and a loss that "
                "is computed alike in each step, would save it."
            )
        return output

    def _begin_fine_tuning(self) -> None:
        """All processes need the whole network from here on."""
        if self._steps.link is not None and not self._is_fine_tuning:
            self._end_layer_parallel(self._trainer.strategy)
        self._is_fine_tuning = True

    def _end_layer_parallel(self, strategy: Any) -> None:
        assert self._steps.link is not None
        strategy.share_module()
        strategy.share_optimizers()
        self._steps.gather()
        self._steps.link.finish()

    def _finish(self, step: TrainingStep) -> Any:
        output = step.run()
        if not self._is_local or self._steps.plan is None:
            return output
        finished = self._steps.finish(output)
        if finished is not output:
            root = finished if isinstance(finished, torch.Tensor) else finished["loss"]
            note_outputs_for_reduction(self._trainer.strategy.model, root)
        return finished

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.world_size > 1:
            for parameter in self._steps.heads.parameters():
                if parameter.grad is not None:
                    parameter.grad = trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        self._steps.heads.step(
            scaler=self._steps.scaler, clip=trainer.gradient_clip_val, clip_algorithm=trainer.gradient_clip_algorithm
        )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._steps.link is not None and is_checkpoint_due(trainer):
            share_metrics(trainer)
        if self._steps.plan is None or not trainer.loggers or not is_logging_step(trainer):
            return
        for block, loss in self._steps.losses.items():
            pl_module.log(f"local_learning/loss/block_{block + 1}", loss, batch_size=1)
        for block, saved in self._steps.saved_bytes.items():
            pl_module.log(f"local_learning/saved_bytes/block_{block + 1}", float(saved), batch_size=1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        link = self._steps.link
        if link is None:
            return
        share_metrics(trainer)
        losses = {block: float(loss) for block, loss in self._steps.losses.items()}
        everybody = link.groups.gather_object((losses, link.idle_share()))
        for process, (known, idle_share) in enumerate(reversed(everybody), 1):
            pl_module.log(f"local_learning/idle_share/process_{process}", idle_share)
            for block, loss in known.items():
                pl_module.log(f"local_learning/loss/block_{block + 1}_end", loss)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._steps.link is not None:
            share_metrics(trainer)
            self._end_layer_parallel(trainer.strategy)

    # ---- state

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._steps.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._steps.load_state_dict(state_dict)

    def describe(self) -> list[dict[str, Any]]:
        """A row for each block: the submodule that ends it, its bytes saved for backward and its parameters."""
        return [] if self._steps.plan is None else described(self._steps.plan.blocks)
