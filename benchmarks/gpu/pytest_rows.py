"""A plug-in of pytest: writes a row for each test as it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.gpu.places import keep_row

MOST_CHARACTERS = 4000


def pytest_runtest_logreport(report: Any) -> None:
    """A phase of a test has ended; its call is what counts, or what kept it from being called."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # the process that collects the reports writes them
        return
    if report.when != "call" and report.outcome == "passed":
        return
    out, device, is_quick = (os.environ[f"AUTOASSIST_GPU_{name}"] for name in ("OUT", "DEVICE", "IS_QUICK"))
    said = "" if report.outcome == "passed" else report.longreprtext[-MOST_CHARACTERS:]
    row = {"case": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), "said": said}
    keep_row(Path(out), "tests", device, is_quick == "True", row)
