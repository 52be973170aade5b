r"""Packs what ``python -m benchmarks.gpu`` needs on a machine without network: data and wheels beside the working tree.

    python -m benchmarks.gpu.pack                        # fills build/gpu, which git ignores
    python -m benchmarks.gpu.pack --archive gpu.tar      # and packs it with the working tree into one file

On the other machine: tar xf gpu.tar -C FOLDER, and in the folder python -m benchmarks.gpu --minutes 11 --out DIR. There
have to be torch with CUDA and torchvision; wheels of all else that is needed and small travel, and are used where the
machine has none of its own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.common.apt import PrivateApt
from benchmarks.gpu.places import PACK, ROOT
from benchmarks.translation.pairs import PAIRS_FILE, load_pairs
from lightning_autoassist.demo.data import DEBIAN_DIR, DEFAULT_DATA_DIR

MOST_BYTES = 64 * 2**20
FASHION_MNIST = Path("FashionMNIST", "raw")  # where torchvision has it
DEBIAN_PACKAGE = "dataset-fashion-mnist"
# Small, and missing here and there: what runs the tests, the training loops and the translation.
WHEELS = (
    "iniconfig",
    "lightning-utilities",
    "pluggy",
    "portalocker",
    "pytest",
    "pytest-timeout",
    "pytorch-lightning",
    "sacrebleu",
    "sentencepiece",
    "tabulate",
    "torchmetrics",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pack_fashion_mnist(folder: Path, data_dir: Path) -> None:
    """Copy Fashion-MNIST's four files, from Debian's package where they are nowhere else."""
    found = [place for place in (DEBIAN_DIR, data_dir / FASHION_MNIST) if place.is_dir()]
    if not found:
        apt = PrivateApt(data_dir / "apt-en")
        apt.update()
        found = [apt.unpack([DEBIAN_PACKAGE]) / DEBIAN_DIR.relative_to("/")]
    (folder / FASHION_MNIST).mkdir(parents=True, exist_ok=True)
    for path in found[0].glob("*-ubyte.gz"):
        shutil.copyfile(path, folder / FASHION_MNIST / path.name)


def pack_pairs(folder: Path, data_dir: Path) -> None:
    """Copy the pairs to translate, made where they are not yet."""
    load_pairs(data_dir)
    shutil.copyfile(data_dir / PAIRS_FILE, folder / PAIRS_FILE)


def pack_wheels(folder: Path, python: str) -> None:
    """Fetch wheels for another machine's Python.

    Args:
        folder: For the wheels.
        python: Its version, as in ``"3.12"``.

    Raises:
        RuntimeError: If one cannot be had, with what pip says.
    """
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *WHEELS]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not fetch the wheels for Python {python}: {done.stderr.strip()[-1000:]}")


def tree_files() -> list[Path]:
    """What belongs to the working tree: tracked files, and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(path for name in names.split("\0") if name and (path := ROOT / name).is_file())


def packed_files(folder: Path) -> list[Path]:
    """What was packed beside it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_size(folder: Path) -> int:
    """Bytes that travel.

    Raises:
        RuntimeError: If they are more than 64 MiB, with what they are.
    """
    sizes = {"the working tree": sum(path.stat().st_size for path in tree_files())}
    for part in sorted(folder.iterdir()):
        sizes[part.name] = sum(path.stat().st_size for path in [part, *part.rglob("*")] if path.is_file())
    total = sum(sizes.values())
    listed = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
    print(f"{total / 2**20:.1f} MiB travel: {listed}")
    if total > MOST_BYTES:
        raise RuntimeError(f"{total / 2**20:.1f} MiB are more than {MOST_BYTES / 2**20:.0f} ({listed})")
    return total


def write_archive(path: Path, folder: Path) -> None:
    """Pack the working tree and what was packed beside it into one file."""
    with tempfile.TemporaryDirectory(dir=path.absolute().parent) as temporary:
        part = Path(temporary) / path.name
        with tarfile.open(part, "w") as archive:
            for file in tree_files():
                archive.add(file, file.relative_to(ROOT))
            for file in packed_files(folder):
                archive.add(file, PACK.relative_to(ROOT) / file.relative_to(folder))
        part.replace(path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, default=PACK, help="for data and wheels; default: build/gpu")
    add("--archive", type=Path, help="a .tar file for all of it together with the working tree")
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    add("--python", default="3.12", help="version on the machine with the GPU, for the wheels")
    return parser.parse_args()


def main() -> None:
    """Pack, and say how much it is."""
    args = parse()
    folder, data_dir = args.folder, args.data_dir.expanduser()
    try:
        pack_fashion_mnist(folder / "data", data_dir)
        pack_pairs(folder / "data", data_dir)
        pack_wheels(folder / "wheels", args.python)
        check_size(folder)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"nothing was packed: {error}")
    if args.archive is not None:
        write_archive(args.archive, folder)
        print(f"{args.archive}: {args.archive.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
