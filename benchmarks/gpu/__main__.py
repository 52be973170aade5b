r"""What there is to know on a GPU, in one command that ends by itself in time.

    python -m benchmarks.gpu --minutes 11 --out DIR
    python -m benchmarks.gpu --minutes 8 --out DIR --only translation
    python -m benchmarks.gpu --device cpu --quick --out DIR    # about a minute: shows that it runs

In order of worth: the tests of ``tests/gpu`` on the device; what a step costs with and without filtering; accuracy of a
ResNet-18 against seconds; translation, if time is left. Each part is a process of its own with a time limit. It writes
its rows to DIR/gpu.jsonl as they come, and what it says to DIR/PART.txt: one that fails or hangs costs no other.
On a machine without network, pack what is needed beforehand: python -m benchmarks.gpu.pack --help.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.places import PACK, ROOT, STARTED, add_arguments, keep_row, machine

# Seconds that a process is given to end by itself, and then to end when it is told to.
GRACE = 4.0
TEST_PROCESSES = 6
QUICK_TESTS = "test_in_single_precision or test_data_that_lie_on_the_device"
NEEDED = ("lightning_utilities", "pytest", "pytest_timeout", "pytorch_lightning", "torchmetrics")
FOR_TRANSLATION = ("sacrebleu", "sentencepiece")


@dataclass(frozen=True)
class Share:
    """How much of the time a part gets.

    Args:
        name: Of the part.
        ratio: Of the whole time at most; what earlier parts left over is added.
        least: Seconds below which it is not begun.
    """

    name: str
    ratio: float
    least: float


# Accuracy is measured with as many images as fit the time that is left; translation gets what remains after it.
PLAN = (
    Share("tests", 0.22, 20),
    Share("cost", 0.27, 30),
    Share("accuracy", 1.0, 60),
    Share("translation", 1.0, 100),
)


def command_of(part: str, options: Sequence[str], seconds: float, device: str, is_quick: bool) -> list[str]:
    """How a part is started."""
    if part != "tests":
        return [sys.executable, "-m", f"benchmarks.gpu.{part}", *options, "--seconds", f"{seconds:.0f}"]
    chosen = [device] + ([QUICK_TESTS] if is_quick else [])
    options = ["-m", "gpu", "-q", "-k", " and ".join(f"({each})" for each in chosen), "-p", "no:cacheprovider"]
    if device == "cuda" and importlib.util.find_spec("xdist") is not None:
        # Several processes share the device: most of a test's time is spent on the host.
        options += ["--numprocesses", str(min(TEST_PROCESSES, os.cpu_count() or 1)), "-p", "no:benchmark"]
    return [sys.executable, "-m", "pytest", "tests/gpu", "-p", "benchmarks.gpu.pytest_rows", *options]


class Run:
    """Runs the parts one after the other.

    Args:
        args: The command line.
        wheels: Folder of packages that this machine lacks; None where it has all.
        command: How a part is started, see :func:`command_of`.
    """

    def __init__(
        self, args: argparse.Namespace, wheels: Path | None, command: Callable[..., list[str]] = command_of
    ) -> None:
        self.args = args
        self.command = command
        self.started = time.monotonic()
        self.seconds = 60 * args.minutes
        self.failed: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        paths = [str(ROOT), *([str(wheels)] if wheels else []), os.environ.get("PYTHONPATH", "")]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            # Of cuBLAS: equal runs give equal bits.
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "AUTOASSIST_GPU_OUT": str(args.out.absolute()),
            "AUTOASSIST_GPU_DEVICE": args.device,
            "AUTOASSIST_GPU_IS_QUICK": str(args.quick),
        }

    @property
    def seconds_left(self) -> float:
        """Until all has to have ended."""
        return self.started + self.seconds - time.monotonic()

    def run(self, plan: Sequence[Share]) -> None:
        """Run the parts that there is time for."""
        self._keep(case="machine", minutes=self.args.minutes, **machine())
        spare = 0.0
        for share in plan:
            limit = self.seconds_left - GRACE
            if not self.args.quick:
                limit = min(share.ratio * self.seconds + spare, limit)
            if limit < (GRACE if self.args.quick else share.least):
                print(f"{share.name}: {limit:.0f} s are too few, not begun", flush=True)
                self._keep(case=share.name, outcome="no time", seconds=0.0, limit=round(limit))
                continue
            started = time.monotonic()
            outcome = self._run(share.name, limit)
            seconds = time.monotonic() - started
            spare = max(0.0, spare + share.ratio * self.seconds - seconds)
            print(f"{share.name}: {outcome} after {seconds:.0f} s of {limit:.0f}", flush=True)
            self._keep(case=share.name, outcome=outcome, seconds=round(seconds, 1), limit=round(limit))
            if outcome != "ended":
                self.failed.append(share.name)

    def _keep(self, **row: Any) -> None:
        keep_row(self.args.out, "plan", self.args.device, self.args.quick, row)

    def _run(self, name: str, limit: float) -> str:
        """Run a part; says how it ended."""
        data_dir = self.args.data_dir.absolute()  # rows name the command: no folder of this machine, where it can be
        data_dir = data_dir.relative_to(ROOT) if data_dir.is_relative_to(ROOT) else data_dir
        options = ["--device", self.args.device, "--out", str(self.args.out), "--data-dir", str(data_dir)]
        options += ["--quick"] if self.args.quick else []
        command = self.command(name, options, limit - GRACE, self.args.device, self.args.quick)
        with (self.args.out / f"{name}.txt").open("wb") as said:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = self._process.wait(limit)
            except subprocess.TimeoutExpired:
                self.stop()
                return "stopped at its limit"
        self.stop()  # what it has started
        return "ended" if code == 0 else f"failed with {code}"

    def stop(self) -> None:
        """End the part that is running, and all that it has started."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            try:
                self._process.wait(GRACE / 2)
            except subprocess.TimeoutExpired:
                continue
        self._process = None


def unpacked_wheels(out: Path, names: Sequence[str]) -> Path | None:
    """A folder with the packages that this machine lacks, from the wheels that travelled; None where it has all."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    wheels = sorted((PACK / "wheels").glob("*.whl"))
    needed = [path for path in wheels if path.name.split("-")[0].lower() in missing]
    if not needed:
        return None
    # What pytest and sacrebleu need in turn is small: all that the machine lacks.
    needed += [path for path in wheels if path not in needed and not importlib.util.find_spec(path.name.split("-")[0])]
    target = out.absolute() / "packages"
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, needed)], check=True)
    return target


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, default=11.0, help="after which all has ended; default: 11")
    names = [share.name for share in PLAN]
    parser.add_argument("--only", action="append", choices=names, help="again for more; default: all")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ[STARTED] = time.strftime("%Y-%m-%d %H:%M")
    run = Run(args, unpacked_wheels(args.out, [*NEEDED, *FOR_TRANSLATION]))

    def end(number: int, frame: FrameType | None) -> None:
        run.stop()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    run.run([share for share in PLAN if not args.only or share.name in args.only])
    sys.exit(f"not all is well: {', '.join(run.failed)}; see {args.out}" if run.failed else 0)


if __name__ == "__main__":
    main()
