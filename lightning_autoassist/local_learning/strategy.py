"""``LayerParallelStrategy``: layers trained in parallel, neighbouring blocks in each process.

Source: Laskin et al., Parallel Training of Deep Networks with Local Updates, 2020, arXiv:2012.03837.
"""

from __future__ import annotations

import functools
import signal
import subprocess
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.local_learning.agreement import put_first_and_last
from lightning_autoassist.local_learning.process_link import ProcessLink
from lightning_autoassist.local_learning.transport import Groups, PeerEndedError
from lightning_autoassist.trainer_support.arguments import check_flag, check_number, check_whole
from lightning_autoassist.trainer_support.internals import script_launcher, seed_workers_alike, set_rank_zero
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state
from lightning_autoassist.trainer_support.variants import FLAVOURS

if TYPE_CHECKING:
    from pytorch_lightning.strategies import ParallelStrategy

    _Base = ParallelStrategy
else:
    _Base = object

_SECONDS_FOR_LAST_WORDS = 5.0


class _LayerParallel(_Base):
    """Trains neighbouring blocks of a network in each process, all at the same time, each on another batch.

    To be used with ``LocalLearningCallback``, which cuts the network, as ``Trainer(strategy="layer_parallel")``. All
    processes have the whole module and see the same batches. Each runs the user's step with other processes' blocks
    left out: it receives an activation, runs its blocks, trains them by the losses of their heads, and sends its last
    block's output on. Nothing goes backward, so no process waits for a later one unless ``max_in_flight`` activations
    are on their way. The first process hosts the last blocks and ends the step: it has the user's metrics, the progress
    bar and the loggers. Before validation, saving and fine-tuning all get what each has learnt, so that checkpoints are
    ordinary ones. A run is equal to the one of the callback alone in one process.

    Args:
        accelerator: See Lightning's ``ParallelStrategy``.
        parallel_devices: See there.
        cluster_environment: See there.
        checkpoint_io: See there.
        precision_plugin: See there.
        max_in_flight: Activations of a process that the next one need not have taken yet.
        timeout: Seconds after which a process that does not answer is given up; more than the longest pause between two
            batches, as for validation.
        clip_by_block: Whether ``gradient_clip_val`` may clip the norm of each process's blocks by themselves; the norm
            over all blocks is not known without waiting for all of them.
    """

    def __init__(
        self,
        accelerator: Any = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Any = None,
        *,
        max_in_flight: int = 2,
        timeout: float = 1800.0,
        clip_by_block: bool = False,
    ) -> None:
        super().__init__(accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin)
        self.max_in_flight = check_whole("max_in_flight", max_in_flight, "[1, inf)", "2 hides the transfer")
        self.timeout = check_number("timeout", timeout, "(0, inf)", "1800 is the default")
        self.clip_by_block = check_flag("clip_by_block", clip_by_block)
        self.num_nodes = 1
        self.layer_link: ProcessLink | None = None
        self._groups: Groups | None = None

    # ---- processes

    @property
    @override
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank]

    @property
    def num_processes(self) -> int:
        """Processes of this node."""
        return len(self.parallel_devices) if self.parallel_devices is not None else 0

    @property
    @override
    def world_size(self) -> int:
        # Of data: all processes see the same batches.
        return 1

    @override
    def _configure_launcher(self) -> None:
        flavour = type(self).flavour  # type: ignore[attr-defined]
        self._launcher = script_launcher(flavour, self.cluster_environment, self.num_processes, self.num_nodes)

    def set_world_ranks(self) -> None:
        """Tell Lightning which process this is."""
        environment = self.cluster_environment
        if environment is not None:
            environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
            environment.set_world_size(self.num_nodes * self.num_processes)
        set_rank_zero(type(self).flavour, self.global_rank)  # type: ignore[attr-defined]

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        self.set_world_ranks()
        size = self.num_nodes * self.num_processes
        if size < 2:
            raise ValueError(
                f'strategy="layer_parallel" needs two devices or more, got devices={size}; one needs no strategy.'
            )
        if self._groups is None:
            environment = self.cluster_environment
            assert environment is not None
            address, port = environment.main_address, environment.main_port
            self._groups = Groups.connect(address, port, self.global_rank, size, self.timeout)
        self.layer_link = ProcessLink(self._groups, self.max_in_flight)

    @override
    def setup(self, trainer: Any) -> None:
        if trainer.state.fn == "fit":
            callbacks = [each for each in trainer.callbacks if type(each).__name__ == "LocalLearningCallback"]
            if not callbacks:
                raise ValueError(
                    'strategy="layer_parallel" needs a callback that cuts the network; pass '
                    "callbacks=[LocalLearningCallback(...)] to the Trainer."
                )
            put_first_and_last(trainer, callbacks[0])
        super().setup(trainer)
        assert self._groups is not None
        assert self.model is not None
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            values = tensor.detach().cpu().contiguous()
            self._groups.broadcast(values, 0)
            tensor.detach().copy_(values)
        restore_rng_state(self._groups.broadcast_object(rng_state()))

    @override
    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        """Let workers draw the same random numbers in all processes."""
        seed_workers_alike(dataloader)
        return super().process_dataloader(dataloader)

    # ---- what is known to all

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        if self._groups is not None:
            self._groups.gather_object(None)

    @override
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj if self._groups is None else self._groups.broadcast_object(obj, src)

    @override
    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        # The process that has a metric has seen all instances.
        return tensor

    @override
    def all_gather(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor

    @override
    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return bool(self.broadcast(bool(decision)))  # the process with the last block has the metrics

    # ---- what each process has learnt

    def share_module(self) -> None:
        """Give all processes the parameters and buffers that each of them has trained."""
        if self.layer_link is not None and self.lightning_module is not None:
            self.layer_link.share_module(self.lightning_module)

    def share_optimizers(self) -> None:
        """Give all processes the optimizers' states."""
        for optimizer in self.optimizers:
            optimizer.load_state_dict(self.optimizer_state(optimizer))

    @override
    def on_validation_start(self) -> None:
        self.share_module()

    @override
    def on_train_end(self) -> None:
        self.share_module()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        self.share_module()
        return super().lightning_module_state_dict()

    @override
    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().optimizer_state(optimizer)
        if self.layer_link is None or self.lightning_module is None:
            return state
        return self.layer_link.whole_optimizer_state(self.lightning_module, optimizer, state)

    # ---- the end

    @override
    def on_exception(self, exception: BaseException) -> None:
        """End all processes: those of this one's that ended by themselves have said why."""
        children: list[subprocess.Popen[bytes]] = getattr(self._launcher, "procs", [])
        if isinstance(exception, PeerEndedError):
            end = time.monotonic() + _SECONDS_FOR_LAST_WORDS
            while time.monotonic() < end and any(child.poll() is None for child in children):
                time.sleep(0.05)
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
        super().on_exception(exception)


@functools.cache
def strategy_of(flavour: ModuleType) -> type:
    """The strategy for Trainers of one of Lightning's packages.

    Args:
        flavour: ``pytorch_lightning`` or ``lightning.pytorch``.
    """
    bases = (_LayerParallel, flavour.strategies.ParallelStrategy)
    return type("LayerParallelStrategy", bases, {"flavour": flavour.__name__, "__doc__": _LayerParallel.__doc__})


LayerParallelStrategy = strategy_of(FLAVOURS[0])
