"""Pages as a browser shows them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from shutil import which

import pytest


class Browser:
    """Chromium without a window.

    Args:
        command: Its program.
        profile: Its folder, which takes it seconds to make.
    """

    def __init__(self, command: str, profile: Path) -> None:
        self.command = command
        self.profile = profile

    def dom(self, path: Path, *flags: str) -> str:
        """The elements of a page, as text, once its scripts have run."""
        command = [self.command, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.profile}"]
        command += [*flags, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout


def browser_of(profile: Path) -> Browser:
    """The browser that is installed; skips the test where there is none."""
    found = which("chromium") or which("chromium-browser") or which("google-chrome")
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    return Browser(found, profile)


def with_script(page: str, script: str) -> str:
    """A copy of a page in which a script runs that the page's own security policy forbids, to work its controls."""
    page = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page)
    return page.replace("</body>", f"<script>{{{script}}}</script></body>")
