"""A schedule for epochs whose length is not known before they begin."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.images.runs import ImageModule

RESOLUTION = 10_000


class ProgressModule(ImageModule):
    """The images' module, its OneCycle laid over the share of training that is done.

    The peers' epochs are as long as their losses make them, so that no number of steps can be given beforehand.
    """

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(), self.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=RESOLUTION)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._num_batches_done = batch_idx + 1

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        of_epoch = self._num_batches_done / self.trainer.num_training_batches
        progress = (self.trainer.current_epoch + of_epoch) / self.trainer.max_epochs
        scheduler.last_epoch = int(progress * (RESOLUTION - 1)) - 1
        scheduler.step()
