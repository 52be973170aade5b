"""Commands that start processes of their own."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import ROOT

# Lightning chooses a free port and binds it a moment later: another process may have taken it in between, and then the
# processes do not find each other.
NEVER_MET = ("EADDRINUSE", "address already in use", "waiting for clients", "rendezvous")


class Ended(NamedTuple):
    """What a command left: its exit status, and the end of what it and its processes wrote."""

    returncode: int
    output: str


def run_with_children(command: list[str], timeout: float, **options: object) -> Ended:
    """Run a command and end whatever it started, so that no process that waits for a dead one holds us up.

    Args:
        command: Program and arguments.
        timeout: Seconds.
        options: Of ``subprocess.Popen``.
    """
    ended = _run_once(command, timeout, options)
    if ended.returncode and any(words.lower() in ended.output.lower() for words in NEVER_MET):
        ended = _run_once(command, timeout, options)
    return ended


def has_ended(pid: int, within: float = 20) -> bool:
    """Whether a process ends in time: the system closes its files before it is gone, and this can take a while.

    Args:
        pid: Number of the process; one that has ended and waits to be collected has ended.
        within: Seconds.
    """
    until = time.monotonic() + within
    while _is_running(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while it is read
        return False


def _run_once(command: list[str], timeout: float, options: dict[str, object]) -> Ended:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "output")
        with file.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True, **options
            )
            with contextlib.suppress(subprocess.TimeoutExpired):  # its status tells: it was killed
                process.wait(timeout)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Ended(process.returncode, file.read_text(errors="replace")[-8000:])
