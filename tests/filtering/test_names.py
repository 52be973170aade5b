"""Names of settings are types: a type checker sees a wrong one in a user's project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import lightning_autoassist
from lightning_autoassist import ASSISTANTS, POLICIES, AutoAssistCallback, Policy
from lightning_autoassist.capture.loss_capture import SCORES
from lightning_autoassist.filtering.names import AssistantName, PolicyName, ScoreName

ROOT = Path(lightning_autoassist.__file__).parents[1]
# The rest of the world is left out: what it would take to check it has nothing to do with these names.
CONFIG = "[mypy]\nstrict = true\n" + "".join(
    f"[mypy-{package}.*]\nfollow_imports = skip\nfollow_imports_for_stubs = true\n"
    for package in ("torch", "numpy", "torchmetrics", "pytorch_lightning", "lightning", "lightning_fabric")
)
HEAD = """
from typing import Any
from lightning_autoassist import POLICIES, AutoAssistCallback, ClassQuotaPolicy, Policy, PolicyName, ProportionalPolicy
from lightning_autoassist import MLPAssistant, ShrinkingBatchSampler

class Mine(Policy):
    default_score = "loss"
    default_weights = "mean"

POLICIES["mine"] = Mine

def callback(policy: PolicyName = "infobatch", **options: Any) -> AutoAssistCallback:
    return AutoAssistCallback(policy=policy, **options)

"""
RIGHT = """
AutoAssistCallback()
AutoAssistCallback("infobatch", "mlp", score="loss", reweighting="normalized", update="async", lag=2)
AutoAssistCallback(assistant="auto", policy=Mine(), score="auto", reweighting="auto", update="auto")
AutoAssistCallback(assistant=MLPAssistant(), policy=ProportionalPolicy(0.4))
ClassQuotaPolicy("random")
ClassQuotaPolicy(Mine())
ShrinkingBatchSampler(range(10), 2, reweighting="inverse_probability")
callback("uniform", unfiltered_tail=0.1)
"""
WRONG = (
    'AutoAssistCallback(policy="infobach")',
    'AutoAssistCallback(assistant="linear")',
    "AutoAssistCallback(policy=Mine)",
    'AutoAssistCallback(score="gradient")',
    'AutoAssistCallback(reweighting="average")',
    'AutoAssistCallback(update="asynchronous")',
    'ClassQuotaPolicy("propotional")',
    'ShrinkingBatchSampler(range(10), 2, reweighting="auto")',
    'callback("unifrom")',
)


def test_the_types_are_the_registries():
    assert get_args(PolicyName) == tuple(POLICIES)
    assert get_args(AssistantName) == tuple(ASSISTANTS)
    assert set(get_args(ScoreName)) == {*SCORES, "layer_gradient_norm"}  # of layers, which no loss has


def test_a_type_checker_sees_typos(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(CONFIG)
    lines = [*HEAD.splitlines(), *RIGHT.splitlines()]
    (tmp_path / "user.py").write_text("\n".join([*lines, *WRONG]) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "user.py"]
    checked = subprocess.run(command, cwd=tmp_path, env={"MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    errors = [line for line in checked.stdout.splitlines() if line.startswith("user.py") and ": error:" in line]
    numbers = [int(line.split(":")[1]) for line in errors]
    assert numbers == list(range(len(lines) + 1, len(lines) + len(WRONG) + 1)), checked.stdout + checked.stderr


def test_registered_names_work_when_it_runs(monkeypatch):
    class Mine(Policy):
        needs_scores = False

    monkeypatch.setitem(POLICIES, "mine", Mine)
    assert isinstance(AutoAssistCallback(policy="mine").policy, Mine)
    monkeypatch.setitem(POLICIES, "made", lambda: POLICIES["infobatch"](prune_ratio=0.3))
    assert AutoAssistCallback(policy="made").policy.prune_ratio == 0.3
    monkeypatch.setitem(POLICIES, "object", Mine())
    with pytest.raises(TypeError, match=r"policy='object' must be registered as a class.*inherits from Policy"):
        AutoAssistCallback(policy="object")
