"""What is found out about one case: whether anything changes, whether it is filtered, and whose losses are whose."""

from __future__ import annotations

import logging
import math
import os
import re
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.outside.cases import BATCH_SIZE, Case, Setup, all_cases
from benchmarks.outside.trainings import Frozen, Training, fit
from lightning_autoassist import AutoAssistCallback, AutoAssistPolicy, diagnose

BUDGET, FILTERED_EPOCHS = 0.6, 5
RELATIVE, OF_LARGEST = 1e-4, 1e-5  # how far two losses may be apart: of the loss itself, and of the largest one
_WAYS_OUT = re.compile(r"\s*(Ways out: |Where that is wrong: ).*", re.DOTALL)

Row = dict[str, Any]


def work(keys: Sequence[tuple[str, str]], connection: Any) -> None:
    """Try cases one after the other, and send the row of each through ``connection``."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["WANDB_DISABLED"] = "1"
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    known = all_cases()
    for key in keys:
        connection.send(try_case(known[key]))


def try_case(case: Case) -> Row:
    """The row of ``case``; what fails is told in its ``error``."""
    started = time.perf_counter()
    row: Row = {
        "bit_equal": None,
        "bit_equal_captured": None,
        "filtering": None,
        "losses_equal": None,
        "why": None,
        "error": None,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setup = case.build()
            row.update(find_equality(setup))
            row.update(find_filtering(setup))
            row.update(find_losses(setup, row))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:600]
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


# ---- is anything changed?


def find_equality(setup: Setup) -> Row:
    """Whether runs that keep everything end with the weights of plain Lightning, bit for bit."""
    plain = fit(setup)
    uniform = fit(setup, AutoAssistCallback(policy="uniform"), budget=1.0)
    captured = fit(setup, AutoAssistCallback(policy=AutoAssistPolicy(gamma=1.0)), budget=1.0)
    row: Row = {
        "bit_equal": uniform.has_same_weights(plain),
        "bit_equal_captured": captured.has_same_weights(plain),
    }
    if not all(row.values()) and not fit(setup).has_same_weights(plain):
        raise RuntimeError("two plain runs from one seed differ: nothing can be told of this case")
    return row


# ---- does it train with the default policy?


def find_filtering(setup: Setup) -> Row:
    """Whether the default policy filters, and trains as many steps as it should."""
    plain = fit(setup, epochs=1)
    callback = AutoAssistCallback()
    training = fit(setup, callback, budget=BUDGET, epochs=FILTERED_EPOCHS)
    summary = callback.summary()
    is_on = summary["keep_rate"] < 1
    news = _news(training, plain)
    return {
        "filtering": "on" if is_on else "off",
        "steps": len(training.losses),
        "steps_due": math.ceil(BUDGET * setup.num_instances / BATCH_SIZE) * FILTERED_EPOCHS,
        "keep_rate": round(summary["keep_rate"], 3),
        "finite": bool(torch.stack(training.losses).isfinite().all()),
        "news": news,
    }


def _news(training: Training, plain: Training) -> list[str]:
    """What was warned of that plain Lightning does not warn of, without the advice at its end."""
    return [_WAYS_OUT.sub("", text) for text in training.warnings if text not in plain.warnings]


# ---- whose loss is it?


class Captured(NamedTuple):
    """What one frozen pass over everything says.

    Attributes:
        losses: Captured ones by instance, shape ``(N,)``; None where filtering is off.
        by_hand: The instances' losses as the case computes them, shape ``(N,)``; None where it does not.
        batches: What each step returned, shape ``(N / B,)``.
    """

    losses: Tensor | None
    by_hand: Tensor | None
    batches: Tensor


def find_losses(setup: Setup, row: Row) -> Row:
    """Whether the captured losses are the instances' own, and what the diagnosis says.

    Raises:
        RuntimeError: If filtering is on in one of the runs and off in the other.
    """
    captured = _capture(setup)
    is_on = captured.losses is not None
    if is_on != (row["filtering"] == "on"):
        raise RuntimeError(f"filtering is {row['filtering']}, and {'on' if is_on else 'off'} on a frozen module")
    own = _alone(setup) if captured.by_hand is None else captured.by_hand
    found: Row = {"splits": None if own is None else _splits(own, captured.batches), **_diagnosed(setup, row)}
    if captured.losses is None:
        return found
    if own is None:
        return {**found, "losses_equal": False, "reference": "none: an instance has no loss alone"}
    reference = "alone" if captured.by_hand is None else "by hand"
    return {**found, **compared(captured.losses, own), "reference": reference}


def _diagnosed(setup: Setup, row: Row) -> Row:
    """What ``diagnose`` says: the losses that were captured, or the reason why none was."""
    try:
        module, data = setup.make_module(), setup.make_loader(BATCH_SIZE, True)
        diagnosis = diagnose(module, data, num_steps=6, quiet=True, accelerator="cpu")
    except Exception as error:  # a fault of its own, which says nothing of the runs
        return {"why": " ".join(row["news"]) or "?", "diagnosis": f"{type(error).__name__}: {error}"[:300]}
    if diagnosis.reason is not None:
        why = _WAYS_OUT.sub("", diagnosis.reason)
    else:
        why = "; ".join(dict.fromkeys(f"{loss.source}, {loss.folding}" for loss in diagnosis.losses))
    return {"why": why, "diagnosis": "on" if diagnosis.is_filtered else "off"}


def _capture(setup: Setup) -> Captured:
    callback = AutoAssistCallback(policy=AutoAssistPolicy(gamma=1.0), assistant="memory", score="loss")
    frozen = Frozen(setup)
    # What is computed by hand comes batch by batch: these must hold the instances in order.
    training = fit(setup, frozen, callback, budget=1.0, epochs=1, shuffle=setup.by_hand is None)
    store = callback.instances
    is_on = store is not None and bool(store.seen.all())
    return Captured(
        store.scores.clone() if is_on else None,
        torch.cat(frozen.by_hand).double() if frozen.by_hand else None,
        torch.stack(training.losses).double(),
    )


def _alone(setup: Setup) -> Tensor | None:
    """Each instance's loss in a batch of one, shape ``(N,)``; None where there is none."""
    try:
        losses = fit(setup, Frozen(setup), epochs=1, batch_size=1, shuffle=False).losses
    except Exception:  # many losses of pairs refuse a batch of one
        return None
    if len(losses) != setup.num_instances:
        return None
    own = torch.stack(losses).double().flatten()
    return own if own.isfinite().all() and own.abs().max() > 0 else None


def _splits(own: Tensor, batches: Tensor) -> bool:
    """Whether the batches' losses are the mean or the sum of their instances' own."""
    mean, share = batches.mean(), own.mean()
    return any(_is_close(mean, factor * share, share.abs()) for factor in (1, BATCH_SIZE))


def compared(captured: Tensor, own: Tensor) -> Row:
    """Whether both are equal, up to one factor for all.

    Args:
        captured: Shape ``(N,)``.
        own: Shape ``(N,)``.

    Returns:
        ``losses_equal``, the ``factor`` (1 where they are equal without one), and the largest ``relative_error``.

    Raises:
        RuntimeError: If the own losses are all alike, which would let captured ones pass that are mixed up.
    """
    captured = captured.double()
    largest = own.abs().max()
    if own.std() <= 10 * (RELATIVE * own.abs().mean() + OF_LARGEST * largest):
        raise RuntimeError("all instances have the same loss: the case shows nothing")
    factor = 1.0 if _is_close(captured, own, largest) else float((captured * own).sum() / (own * own).sum())
    error = ((captured - factor * own).abs() / (factor * own).abs().clamp(min=float(largest) * 1e-3)).max()
    is_equal = factor > 0 and _is_close(captured, factor * own, abs(factor) * largest)
    return {"losses_equal": is_equal, "factor": float(f"{factor:.5g}"), "relative_error": float(f"{error:.2g}")}


def _is_close(one: Tensor, other: Tensor, largest: Tensor) -> bool:
    return bool(((one - other).abs() <= RELATIVE * other.abs() + OF_LARGEST * largest).all())
