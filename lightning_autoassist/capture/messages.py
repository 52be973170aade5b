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
