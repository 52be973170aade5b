"""The demo's data sets, and what is trained on each: learning rates, and how these were chosen.

The command line reads this for its help, so that torch is imported where data are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_autoassist.demo.data import Split, digits, fashion_mnist, long_tailed_digits

if TYPE_CHECKING:
    from lightning_autoassist.demo.rare_events import EventSplit

FULL, UNIFORM = "full", "uniform"
DEFAULT_POLICY, PAPERS_POLICY = "prioritized", "autoassist"
# What the full run and the shortened schedule are compared with.
POLICIES_SHOWN = (DEFAULT_POLICY, PAPERS_POLICY)
# Draws by class alone: what a policy has to beat where classes are known, and as frequent in the test set.
CONTROL = "class_balanced"
RARE_COVER_TYPE = 5


@dataclass(frozen=True)
class DemoData:
    """A data set of the demo, and the settings that suit it.

    Args:
        load: Reads it; gets the folder for downloads.
        batch_size: B.
        num_epochs: Epochs of a run.
        budget: Share of the full run's optimizer steps that all others get.
        num_seeds: Runs of each method.
        learning_rates: Peaks of the OneCycle schedule by method, among them ``"full"`` and ``"uniform"``.
        rates_from: A sentence on what the rates were chosen on, and how.
        caveat: What its figures do not show.
        policies: What runs beside the full run and the shortened schedule.
        policy_options: Arguments of policies that are not the policy's defaults, by its name.
        metric: What validation logs: ``val_`` and this.
        num_points: Most points of a curve.
        stem_stride: Stride of the residual network's first convolution.
        num_threads: Of torch on the CPU; None: torch's own choice.
    """

    load: Callable[[Path], Split | EventSplit]
    batch_size: int
    num_epochs: int
    budget: float
    num_seeds: int
    learning_rates: Mapping[str, float]
    rates_from: str
    caveat: str
    policies: tuple[str, ...] = POLICIES_SHOWN
    policy_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metric: str = "accuracy"
    num_points: int = 12
    stem_stride: int = 1
    # So little work that a second thread gains nothing, and waits many times longer once its core is taken.
    num_threads: int | None = 1

    def learning_rate(self, method: str) -> float:
        """The peak rate of a method; one that none was chosen for takes the shortened schedule's."""
        return self.learning_rates.get(method, self.learning_rates[UNIFORM])

    def curve_interval(self, num_epochs: int) -> int:
        """Epochs between two points of the curve, the last of them at the end of training."""
        return next(n for n in range(max(1, num_epochs // self.num_points), 0, -1) if num_epochs % n == 0)


def _rare_cover_type(data_dir: Path) -> EventSplit:
    from lightning_autoassist.demo.rare_events import load_cover_type

    return load_cover_type(RARE_COVER_TYPE, data_dir)


DEMO_DATA = {
    "digits": DemoData(
        load=long_tailed_digits,
        batch_size=32,
        num_epochs=24,
        budget=0.25,
        num_seeds=3,
        # The rows of this choice are in benchmarks/results/demo.jsonl, and a test compares them with these.
        learning_rates={
            FULL: 0.05,
            UNIFORM: 0.4,
            "proportional": 0.05,
            "prioritized": 0.4,
            "autoassist": 0.8,
            CONTROL: 0.05,
        },
        rates_from="They were chosen on 240 held-out digits, never on the test digits, by python -m benchmarks.demo.",
        caveat="377 digits of which some are rare, at a quarter of the steps: a case that was chosen for filtering to "
        "pay. The default gains without a look at the classes; where they are known and all count alike, a policy has "
        f"to beat {CONTROL}, which draws by class alone. A step is so short here that seconds prove nothing.",
        policies=(*POLICIES_SHOWN, CONTROL),
    ),
    "digits-balanced": DemoData(
        load=digits,
        batch_size=32,
        num_epochs=12,
        budget=0.6,
        num_seeds=3,
        learning_rates={UNIFORM: 0.05},
        rates_from="One rate serves all methods; it was chosen for none of them.",
        caveat="Balanced digits are easy: differences between the methods are within the noise, and there is nothing "
        "to gain but the optimizer steps that a shortened schedule saves, too.",
    ),
    "fashion-mnist": DemoData(
        load=fashion_mnist,
        batch_size=128,
        num_epochs=8,
        budget=0.6,
        num_seeds=1,
        learning_rates={UNIFORM: 0.2},
        rates_from="One rate serves all methods; it was chosen for none of them.",
        caveat="One seed, one learning rate and a short schedule: an illustration, not a comparison. "
        "benchmarks/README.md has a comparison.",
        num_points=8,
        stem_stride=2,
        num_threads=None,
    ),
    "covtype": DemoData(
        load=_rare_cover_type,
        batch_size=512,
        num_epochs=12,
        budget=0.25,
        num_seeds=2,
        # Those of the benchmark of rare events, whose rows a test compares with these.
        learning_rates={FULL: 0.6, UNIFORM: 0.6, "proportional": 1.8, "prioritized": 1.8, "autoassist": 0.6},
        rates_from="They were chosen on 40,000 held-out rows, never on the test rows, by "
        "python -m benchmarks.rare_events.",
        caveat="Cover type 5 against the other six, 1.7 % positives: fewer seeds of what "
        "python -m benchmarks.rare_events measures with five.",
        policy_options={"prioritized": {"keep_rate": 0.1, "floor": 0.02}},
        metric="average_precision",
        num_points=6,
    ),
}
