"""Checkpoints of every mode, and the ends of the runs that they are of: made by one version, resumed by another.

    python -m tests.helpers.golden_checkpoints make FOLDER [CASE ...]     # with the code as it was
    python -m tests.helpers.golden_checkpoints check FOLDER [CASE ...]    # with the code as it is: what differs, if any

A run that is resumed from such a checkpoint must end as the uninterrupted one did, and so must a run of the new version
that nobody interrupted. A checkpoint of another layout begins anew by design: there, only the latter holds.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.assistants import ASSISTANTS
from lightning_autoassist.policies import POLICIES
from tests.end_to_end.test_streaming_runs import StatefulLoader, Stream
from tests.helpers.ordinary import Classifier, ClustersData, trainer
from tests.helpers.paths import ROOT
from tests.helpers.texts import BagOfWords, TextsData

NUM_INSTANCES, STEP, EPOCHS = 120, 17, 4  # in the third epoch of four, where nothing is kept unseen any more
LENGTHS = [2 + number % 11 for number in range(NUM_INSTANCES)]
WHOLE, SAVED, END = "whole", "saved.ckpt", "end.pt"


def clusters() -> Any:
    return ClustersData(NUM_INSTANCES), Classifier()


def texts() -> Any:
    return TextsData(NUM_INSTANCES), BagOfWords()


def stream() -> Any:
    return StatefulLoader(Stream(NUM_INSTANCES), batch_size=10), Classifier()


def shuffled() -> Any:
    return DataLoader(ClustersData(NUM_INSTANCES).train_set, 10, shuffle=True), Classifier()


# What is trained on what, settings of the callback, settings of the data module.
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "index": (clusters, {}, {}),
    "index, without a data module": (shuffled, {"lag": 2}, {}),
    "index, beside": (clusters, {"update": "async", "lag": 2}, {}),
    "tokens": (texts, {}, {"max_tokens": 80, "lengths": LENGTHS}),
    "stream": (stream, {}, {"steps_per_epoch": 8}),
    "stream, mlp": (stream, {"assistant": "mlp", "reweighting": "normalized"}, {"steps_per_epoch": 8}),
    "feature file": (clusters, {"assistant": "logistic", "feature_memory": 0}, {}),
    "text": (texts, {"assistant": "text"}, {}),
    "plain batches": (clusters, {"policy": "uniform"}, {"budget": 1.0}),
    **{f"policy {name}": (clusters, {"policy": name}, {}) for name in POLICIES},
    **{f"assistant {name}": (clusters, {"assistant": name}, {}) for name in ASSISTANTS if name != "text"},
}
DISTRIBUTED = ("filtered", "tokens")  # of tests.helpers.two_processes


class SaveOnce(pl.Callback):
    """Saves in the middle of the run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, run: Any, module: Any, *args: Any) -> None:
        if run.global_step == STEP:
            run.save_checkpoint(self.file)


def fit(name: str, folder: Path, resume: Path | None = None) -> dict[str, Any]:
    """One run of a case; returns what it ended with."""
    make, settings, options = CASES[name]
    pl.seed_everything(1 if resume is None else 99, verbose=False)
    train, module = make()
    data = AutoAssistDataModule(train, seed=11, **options)
    callback = AutoAssistCallback(**settings)
    saving = [] if resume else [SaveOnce(folder / SAVED)]
    run = trainer(max_epochs=EPOCHS, callbacks=[callback, *saving], default_root_dir=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, datamodule=data, ckpt_path=resume)
    summary = callback.summary()
    counted = ("optimizer_steps", "instances_seen", "candidates_seen", "keep_rate")
    return {
        "module": module.state_dict(),
        "assistant": callback.assistant.state_dict(),
        "scores": None if callback.instances is None else callback.instances.scores,
        "summary": {count: summary.get(count) for count in counted},
    }


def two_processes(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Runs of two processes; returns what each of them ended with, by run."""
    command = [sys.executable, "-m", "tests.helpers.two_processes", str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-5000:]
    return {name: [_end_of(folder / f"{name}-{rank}.pt") for rank in (0, 1)] for name in names}


def _end_of(file: Path) -> dict[str, Any]:
    seen = torch.load(file, weights_only=False)
    return {part: seen[part] for part in ("module", "assistant")} | {"scores": seen["store"]["scores"]}


def differences(left: Any, right: Any, place: str = "") -> list[str]:
    """Where two ends differ, in words."""
    if isinstance(left, dict):
        return [line for key in left for line in differences(left[key], right[key], f"{place} {key}")]
    if isinstance(left, list):
        pairs = enumerate(zip(left, right, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{place} {number}")]
    same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right or left != left
    return [] if same else [place.strip()]


def make(folder: Path, names: Iterable[str]) -> None:
    """Make the checkpoint and the end of some cases; ``"two processes"`` is one."""
    for name in names:
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        end = two_processes(own, DISTRIBUTED) if name == "two processes" else fit(name, own)
        torch.save(end, own / END)


def check(folder: Path, names: Iterable[str]) -> list[str]:
    """What differs from the ends that were made, in words: in runs from start to end, and in resumed ones."""
    found = []
    for name in names:
        own = folder / name
        end = torch.load(own / END, weights_only=False)
        with tempfile.TemporaryDirectory() as scratch:
            if name == "two processes":
                whole = two_processes(Path(scratch), DISTRIBUTED)
                again = two_processes(own, [f"{case}@{STEP}" for case in DISTRIBUTED])
                resumed = {case: again[f"{case}@{STEP}"] for case in DISTRIBUTED}
            else:
                whole, resumed = fit(name, Path(scratch)), fit(name, Path(scratch), own / SAVED)
        for kind, seen in (("from start to end", whole), ("resumed", resumed)):
            found += [f"{name}, {kind}: {place}" for place in differences(end, seen)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", default=[*CASES, "two processes"])
    words = parser.parse_args()
    logging.disable(logging.INFO)
    if words.action == "make":
        make(words.folder, words.cases)
        return 0
    found = check(words.folder, words.cases)
    print("\n".join(found) or f"{len(words.cases)} cases end as they did")
    return bool(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
