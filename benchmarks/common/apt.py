"""Debian packages and package lists as a source of data, without touching the machine's own apt.

Works on Debian and what descends from it, without root; what it downloads lies in one folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

CAT_FILE = Path("/usr/lib/apt/apt-helper")


class PrivateApt:
    """apt with package lists and a cache of its own, from the sources that the machine is set up with.

    Args:
        folder: Of lists, cache and downloads; made where it is missing.
        languages: Of the descriptions that :meth:`update` fetches, as in ``("de", "en")``; the machine's own apt often
            has none.

    Raises:
        FileNotFoundError: If the machine has no apt.
    """

    def __init__(self, folder: Path, languages: Sequence[str] = ("en",)) -> None:
        if shutil.which("apt-get") is None or not CAT_FILE.exists():
            raise FileNotFoundError(
                "these data are made from Debian packages, and this machine has no apt; run on Debian or Ubuntu (a "
                "container will do, as in `docker run -it debian:bookworm`), or copy what another machine made of them"
            )
        self.folder = folder.expanduser().absolute()
        for name in ("lists/partial", "cache/archives/partial", "packages", "unpacked"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configuration = self.folder / "apt.conf"
        wanted = " ".join(f'"{language}";' for language in languages)
        self._configuration.write_text(
            f'Dir::State::lists "{self.folder}/lists";\n'
            f'Dir::Cache "{self.folder}/cache";\n'
            'APT::Sandbox::User "root";\n'
            # In the file, and not by a list of the environment's: a list of the machine's would be added to.
            "#clear Acquire::Languages;\n"
            f"Acquire::Languages {{ {wanted} }};\n"
        )

    def update(self) -> None:
        """Fetch the lists, or what is new of them.

        Raises:
            RuntimeError: If that fails, with what apt says.
        """
        self._run(
            ["update"],
            "the package lists could not be fetched (apt needs its mirror); run again when it can be reached",
        )

    def index_files(self, kind: str, language: str | None = None) -> list[Path]:
        """The lists that were fetched, in the order of the sources.

        Args:
            kind: ``"Packages"`` or ``"Translations"``.
            language: Of translations; None: of any.
        """
        wanted = [f"Created-By: {kind}"] + ([] if language is None else [f"Language: {language}"])
        names = self._run(["indextargets", "--format", "$(FILENAME)", *wanted], "apt names no lists")
        return [path for path in map(Path, names.splitlines()) if path.exists()]

    def stanzas(self, path: Path) -> Iterator[dict[str, str]]:
        """The entries of a list, however it is compressed: fields by their names, further lines after a line break."""
        done = subprocess.run([CAT_FILE, "cat-file", path], capture_output=True, check=True)
        for block in done.stdout.decode().split("\n\n"):
            fields: dict[str, str] = {}
            name = ""
            for line in block.splitlines():
                if line[:1] in (" ", "\t"):
                    fields[name] += "\n" + line
                else:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
            if fields:
                yield fields

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Fetch packages, or find those that were fetched before; nothing is installed.

        Args:
            packages: Their names.

        Returns:
            Their files, in the order of the names.

        Raises:
            RuntimeError: If the machine's sources do not have one, with what apt says.
        """
        folder = self.folder / "packages"
        missing = [name for name in packages if not list(folder.glob(f"{name}_*.deb"))]
        if missing:
            self._run(
                ["download", *missing],
                f"{', '.join(missing)} could not be fetched (with the network there, is Debian's main section in the "
                "machine's sources?)",
                folder,
            )
        return [max(folder.glob(f"{name}_*.deb")) for name in packages]

    def unpack(self, packages: Sequence[str]) -> Path:
        """Fetch packages and take their files out.

        Args:
            packages: Their names.

        Returns:
            The folder that stands for the root of the file system.

        Raises:
            RuntimeError: As :meth:`download`.
        """
        root = self.folder / "unpacked"
        for path in self.download(packages):
            subprocess.run(["dpkg", "-x", path, root], check=True)
        return root

    def _run(self, arguments: Sequence[str], what_failed: str, folder: Path | None = None) -> str:
        # With -c: APT_CONFIG is read before the machine's files, which would then add to it.
        command = ["apt-get", "-q", "-c", str(self._configuration), *arguments]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        # apt-get update takes a mirror that cannot be reached for a warning.
        complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed", "W: Some"))]
        if done.returncode or (arguments[0] == "update" and complaints and not self.index_files("Packages")):
            said = "; ".join(complaints) or f"apt-get ended with {done.returncode}"
            raise RuntimeError(f"{what_failed}: {said}")
        return done.stdout
