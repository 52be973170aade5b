"""What the user is told about losses that were found, and about those that were not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_autoassist.capture.attribution import Missed, Share
from lightning_autoassist.capture.captured_loss import CapturedLoss, WeightedLoss
from lightning_autoassist.capture.reductions import Reduction

WAYS_OUT = (
    "Ways out: return {'loss': loss, 'instance_loss': losses} from training_step, one loss an instance, shape (B,); "
    "or give the module a method instance_loss(batch, outputs) that returns them; "
    "or use the loss functions of torch.nn.functional."
)


def because_of(source: str, error: Exception) -> str:
    """The message that AutoAssist itself failed to find the instances of a loss."""
    return f"{source} could not be told apart by rows ({type(error).__name__}: {error})"


def sources(parts: Sequence[WeightedLoss]) -> str:
    """The calls that losses come from."""
    return " + ".join(dict.fromkeys(part.found.source for part in parts))


def why_nothing(
    where: str, missed: Sequence[Missed], unshown: Sequence[Reduction], named: Sequence[CapturedLoss]
) -> str:
    """The message that no loss was captured behind what ``where`` returned, with the reason."""
    notes: dict[str, None] = dict.fromkeys(each.note for each in missed)
    notes.update((f"{end.source} was not shown to have one value an instance", None) for end in unshown)
    for found in named:
        if isinstance(found.edge, Tensor):
            notes[f"{found.source} must be what is returned: compiled code does not tell its coefficient"] = None
    noted = "".join(f" {note}." for note in notes)
    return f"No per-instance loss was found behind what {where} returned.{noted} {WAYS_OUT}"


def why_too_little(where: str, share: Share, parts: Sequence[WeightedLoss]) -> str:
    """Why the captured losses do not decide."""
    return (
        f"Only {share.ratio:.0%} of the gradient of what {where} returned comes from losses whose instances are known "
        f"({sources(parts)}). Missed: {'; '.join(share.missed)}. {WAYS_OUT}"
    )


def on_share(share: Share) -> str:
    """That the captured losses decide, and are not all."""
    return (
        f"only {share.ratio:.0%} of the loss's gradient comes from losses whose instances are known, and which "
        f"instances are kept is decided by these alone. Missed: {'; '.join(share.missed)}"
    )


def on_hand_written(source: str) -> str:
    """The message that a hand-written loss was captured."""
    return (
        f"{source} is taken for the mean of one loss an instance, since each of the values that it reduces depends on "
        f"one instance; its score is the loss. Where that is wrong: {WAYS_OUT}"
    )


def why_no_layout(source: str, num_rows: int, batch_size: int) -> str:
    """Why the rows of a loss cannot be assigned to instances."""
    if num_rows == batch_size:
        return (
            f"{source} has {num_rows} rows for as many instances here, and another number of them in other steps, "
            "so that the rows need not be the instances'"
        )
    return (
        f"{source} has {num_rows} rows for {batch_size} instances, and nothing tells which are whose "
        "(row_order= does, where all instances have equally many)"
    )


def out_of_order(problem: str) -> str:
    """That the rows of a loss are in another order than the batch's, with the ways out."""
    return (
        f"{problem}, so that a loss cannot be assigned to its instance. Put the rows back in the batch's order before "
        "the loss, or sort instances in the loader's collate_fn, which is followed."
    )


def several_backwards(where: str, count: int) -> str:
    """Why the losses of a step that runs backward several times are no instances'."""
    return f"{where} runs backward {count} times, so that no single loss is an instance's. {WAYS_OUT}"


def why_no_weights(source: str) -> str:
    """Why weights cannot enter at losses that the user gave."""
    return (
        f"The {source} is not part of the returned loss's graph, so that the instances' weights cannot enter: return "
        "it from training_step, undetached, or pass reweighting='none'."
    )


def why_changed(where: str) -> str:
    """Why nothing is known of a step that was not watched."""
    return (
        f"{where} returned another loss than in the steps before, each of which returned one loss of torch, so that "
        f"this step was not watched. From here on all steps are. {WAYS_OUT}"
    )
