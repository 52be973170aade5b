"""English and German texts that say the same, from Debian packages.

Three sources: the help pages of LibreOffice, paired by the id of each paragraph and heading; its menus and messages,
from its catalogues; and the descriptions of Debian's packages, from apt's own lists. Fragments and paragraphs as well
as sentences, so that BLEU is not comparable with that on news. Licences: MPL-2.0 for LibreOffice's; each package's own
for descriptions.
"""

from __future__ import annotations

import gettext
import html
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.common.apt import PrivateApt
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

PACKAGES = ("libreoffice-l10n-de", "libreoffice-help-de", "libreoffice-help-en-us")
PAIRS_FILE = "translation-en-de.tsv"
NUM_SPLITS = 20

ELEMENT = re.compile(r'<(p|h\d)\b[^>]*\bid="((?:par|hd)_[^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)
TAG = re.compile(r"<[^>]+>")
BULLET = re.compile(r"\n {1,4}[*+o-] ")
LETTER = re.compile(r"[^\W\d_]")
# Words that hardly a text does without.
_ENGLISH = "the of and is are to for with this that from by be it an or not can which on"
_GERMAN = "der die das und ist sind zu für mit dies von den dem ein eine oder nicht kann auf im zum zur"
ENGLISH, GERMAN = frozenset(_ENGLISH.split()), frozenset(_GERMAN.split())


class Pair(NamedTuple):
    """A text in two languages.

    Attributes:
        group: The page, dialog or package that it is from: what is split into train and test as a whole.
        source: English.
        target: German.
    """

    group: str
    source: str
    target: str

    @property
    def split(self) -> int:
        """Of 20 parts of the groups, the one that it belongs to: 0 is the test set."""
        return zlib.crc32(self.group.encode()) % NUM_SPLITS


def load_pairs(data_dir: Path = DEFAULT_DATA_DIR) -> list[Pair]:
    """All pairs, from the file that an earlier call made, or from the packages.

    Args:
        data_dir: Folder of the file, and of what is downloaded.

    Raises:
        FileNotFoundError: If the file is not there and this machine has no apt to make it with.
        RuntimeError: If a package or a list cannot be had, with how to get it.
    """
    path = data_dir.expanduser() / PAIRS_FILE
    if not path.exists():
        apt = PrivateApt(data_dir / "apt-de", languages=("de", "en"))
        apt.update()
        pairs = extract(apt.unpack(PACKAGES), described(apt))
        part = path.with_suffix(".part")
        part.write_text("".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8")
        part.replace(path)  # so that an interruption leaves no half a file
    return [Pair(*line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]


def extract(root: Path, descriptions: Iterable[Pair] = ()) -> list[Pair]:
    """The clean pairs of unpacked packages, and of descriptions.

    Args:
        root: Folder that the packages were unpacked in.
        descriptions: See :func:`described`.
    """
    resources = root / "usr/lib/libreoffice/program/resource/de/LC_MESSAGES"
    pairs = [*help_pairs(root / "usr/share/libreoffice/help"), *message_pairs(resources), *descriptions]
    return list(unique(pair for pair in map(_spaced, pairs) if is_clean(pair)))


def help_pairs(folder: Path) -> Iterator[Pair]:
    """Paragraphs and headings with the same id in a page's two languages.

    Args:
        folder: Of the help, with a folder for each language.
    """
    for german in sorted((folder / "de/text").rglob("*.html")):
        page = german.relative_to(folder / "de")
        english = folder / "en-US" / page
        if not english.exists():
            continue
        sources = _elements(english)
        for name, target in _elements(german).items():
            if name in sources:
                yield Pair(f"help/{page}", sources[name], target)


def _elements(page: Path) -> dict[str, str]:
    text = page.read_text(encoding="utf-8")
    return {name: html.unescape(TAG.sub("", inner)) for _, name, inner in ELEMENT.findall(text)}


def message_pairs(folder: Path) -> Iterator[Pair]:
    """Menus, labels and messages, without the marks of their keyboard shortcuts.

    Args:
        folder: Of the catalogues.
    """
    for path in sorted(folder.glob("*.mo")):
        with path.open("rb") as file:
            catalogue: dict[object, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, target in catalogue.items():
            if isinstance(key, str) and "\4" in key:
                context, source = key.split("\4", 1)
                group = f"messages/{path.stem}/{context.partition('|')[0]}"
                yield Pair(group, *(re.sub("[~_]", "", text) for text in (source, target)))


def described(apt: PrivateApt) -> Iterator[Pair]:
    """Descriptions of packages, by their parts, where both languages have the same structure.

    Args:
        apt: With the lists of both languages.
    """
    german = _descriptions(apt, "de")
    for digest, (package, english) in _descriptions(apt, "en").items():
        if digest in german:
            sources, targets = _parts(english), _parts(german[digest][1])
            if list(map(len, sources)) == list(map(len, targets)):
                for source, target in zip(sources, targets, strict=True):
                    yield from (Pair(f"package/{package}", *texts) for texts in zip(source, target, strict=True))


def _descriptions(apt: PrivateApt, language: str) -> dict[str, tuple[str, str]]:
    found = {}
    for path in apt.index_files("Translations", language):
        for entry in apt.stanzas(path):
            text = entry.get(f"Description-{language}")
            if text is not None:
                found.setdefault(entry["Description-md5"], (entry["Package"], text))
    return found


def _parts(description: str) -> list[list[str]]:
    """Paragraphs, the first being the summary, each with its bullets."""
    summary, _, body = description.partition("\n")
    paragraphs = re.split(r"\n \.(?=\n|$)", "\n" + body) if body else []
    return [[summary], *(BULLET.split(paragraph) for paragraph in paragraphs)]


def _spaced(pair: Pair) -> Pair:
    return Pair(pair.group, " ".join(pair.source.split()), " ".join(pair.target.split()))


def is_clean(pair: Pair) -> bool:
    """Whether a pair is likely to be one: long enough, alike in length, of words, and in two languages."""
    source, target = pair.source.split(), pair.target.split()
    if pair.source == pair.target or not (3 <= len(source) <= 100 and 3 <= len(target) <= 100):
        return False
    if not 0.4 <= len(pair.target) / len(pair.source) <= 2.8:
        return False
    for words in (source, target):
        letters = "".join(words)
        if len(LETTER.findall(letters)) < 0.7 * len(letters):
            return False
    lowered = [word.lower().strip(".,;:()") for word in target]
    return sum(word in ENGLISH for word in lowered) <= sum(word in GERMAN for word in lowered)


def unique(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The first pair of each source, whatever its case and its punctuation."""
    seen = set()
    for pair in pairs:
        normalised = re.sub(r"\W+", " ", pair.source.lower()).strip()
        if normalised not in seen:
            seen.add(normalised)
            yield pair
