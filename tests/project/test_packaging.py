"""The wheel and the sdist install into an empty environment, and what they install runs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import lightning_autoassist
from tests.helpers.paths import ROOT

pytest.importorskip("build")

NEEDED = {
    "py.typed",
    "compare/compare_page.html",
    "compare/compare_page.js",
    "filtering/checks/schedules.py",
    "instances/instances_page.html",
    "instances/instances_page.js",
    "pages/page_parts.css",
    "pages/page_parts.js",
}


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    # Of a copy: building leaves folders beside the sources.
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "autoassist-*", "wandb")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source"))
    return folder / "dist"


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def test_both_hold_the_package_and_its_data(dist):
    wheel = zipfile.ZipFile(only(dist, "*.whl")).namelist()
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        sdist = archive.getnames()
    for names in (wheel, sdist):
        assert {name.partition("lightning_autoassist/")[2] for name in names} >= NEEDED
        assert any(Path(name).name == "LICENSE" for name in names)
    assert {Path(name).parts[0] for name in wheel} == {
        "lightning_autoassist",
        f"lightning_autoassist-{lightning_autoassist.__version__}.dist-info",
    }


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_installs_into_an_empty_environment_and_runs(dist, pattern, tmp_path):
    """Its dependencies are borrowed from here: torch alone would take minutes to install."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = ("-m", "pip", "--python", str(python), "install", "--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, *install, str(only(dist, pattern)))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    where = run(
        python, "-c", "import lightning_autoassist; print(lightning_autoassist.__file__)", cwd=tmp_path, env=clean
    )
    assert Path(where.strip()).is_relative_to(packages)
    command = environment / "bin" / "autoassist"
    assert run(command, "--version", env=clean).strip() == f"autoassist {lightning_autoassist.__version__}"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text("step,val_loss\n9,1\n19,0.5\n")
    assert "logs" in run(command, "compare", "logs", cwd=tmp_path, env=clean)
    assert (tmp_path / "autoassist-compare" / "compare.html").stat().st_size > 5_000
    if pattern == "*.whl":
        out = run(
            command, "demo", "--epochs", "1", "--budget", "1", "--seeds", "1", "--wandb", "off", cwd=tmp_path, env=clean
        )
        assert "prioritized" in out
