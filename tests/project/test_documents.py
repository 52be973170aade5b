"""What the README and the documentation show works as it stands there."""

import ast
import functools
import re
import sys
import textwrap

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

import lightning_autoassist
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.cli import main
from tests.helpers import ordinary
from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
README = PAGES["README"]

SIBLINGS = {"kfac", "gauss_newton", "local_learning"}


class Numbers(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(100))


class OfTexts(pl.LightningModule):
    """Counts tokens."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net((batch[0] > 0).sum(1, keepdim=True).float()), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def padded(texts):
    tokens, labels = zip(*texts, strict=True)
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True), torch.tensor(labels)


TEXTS = [(torch.ones(1 + number % 50, dtype=torch.long), number % 3) for number in range(300)]


def blocks(language, *pages):
    """The code blocks of pages; of all of them where none is named."""
    text = "\n".join(PAGES[page] for page in pages or PAGES)
    return [textwrap.dedent(block) for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def run_blocks(names, *pages):
    """Run the Python blocks of pages one after another, with the names that a user has from his own project."""
    for page in pages:
        for block in blocks("python", page):
            exec(compile(block, f"{page}.md", "exec"), names)
    return names


@pytest.fixture
def names(monkeypatch):
    """What a user has from his own project."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    monkeypatch.setattr(pl, "Trainer", functools.partial(pl.Trainer, **quiet))
    return {
        "AutoAssistCallback": AutoAssistCallback,
        "AutoAssistDataModule": AutoAssistDataModule,
        "F": F,
        "torch": torch,
        "MyLightningModule": ordinary.Classifier,
        "MyDataModule": ordinary.ClustersData,
        "dataset": ordinary.CountingDataset(200),
        "text_loader": torch.utils.data.DataLoader(TEXTS, batch_size=10, collate_fn=padded),
        "stream_loader": torch.utils.data.DataLoader(Numbers(), batch_size=10),
    }


def test_every_page_with_code_is_tested():
    tested = {"README", "get-started", "losses", "comparing-runs", "schedules", "text", "streams", "extending"}
    tested |= {"devices"}  # by tests/end_to_end/test_scaled_out.py, where Ray is there
    tested |= {"without-a-trainer", "instances"}
    assert {page for page in PAGES if blocks("python", page)} <= tested | SIBLINGS


@pytest.mark.parametrize("page", ["README", "get-started"])
def test_the_two_lines(names, page):
    assert run_blocks(names, page)["trainer"].global_step == 12 * 6


@pytest.mark.parametrize("page", sorted(SIBLINGS & PAGES.keys()))
def test_siblings_blocks(names, page):
    run_blocks(names, page)


def test_blocks_of_text_and_streams(names):
    run_blocks(names, "text", "streams")
    run = ordinary.trainer(max_epochs=1, callbacks=[AutoAssistCallback(policy="uniform")])
    with pytest.warns(UserWarning, match="all 300 instances of the data set are read once for their lengths"):
        run.fit(OfTexts(), datamodule=names["text"])
    assert run.num_training_batches == -(-6 * sum(len(text) for text, _ in TEXTS) // 40_960)


def test_modules_that_the_pages_show_are_filtered(names):
    run_blocks(names, "schedules", "losses", "comparing-runs")
    for name in ("Scheduled", "ReturnsItsLosses", "HasAMethodForThem"):
        callback = AutoAssistCallback()
        data = AutoAssistDataModule(ordinary.ClustersData(), budget=0.6)
        ordinary.trainer(max_epochs=4, callbacks=[callback]).fit(names[name](), datamodule=data)
        assert callback.summary()["keep_rate"] < 1
    assert names["callback"].decode(ordinary.CountingDataset(10)[4]) == "class 1"


def test_what_the_run_taught_about_its_instances(names, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl, "Trainer", functools.partial(pl.Trainer, enable_checkpointing=True, max_epochs=4))
    frame = run_blocks(names, "instances")["frame"]
    assert frame["times_seen"].eq(4).all()
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    for command in "".join(blocks("bash", "instances")).splitlines():
        words = command.split()
        assert words[:3] == ["autoassist", "instances", "lightning_logs/version_0"]
        assert main([*words[1:2], str(checkpoint), *words[3:]]) == 0
        assert (tmp_path / words[4]).with_suffix(".html").exists()


def test_a_policy_an_assistant_and_an_observer_of_ones_own(names):
    run_blocks(names, "extending")
    assistant, timer = names["ClassMeans"](ordinary.NUM_CLASSES), names["StepTimer"]()
    for settings in ({"policy": names["HardestHalf"]()}, {"policy": "proportional", "assistant": assistant}):
        callback = AutoAssistCallback(**settings)
        run = ordinary.trainer(max_epochs=4, callbacks=[callback, timer])
        run.fit(ordinary.Classifier(), datamodule=AutoAssistDataModule(ordinary.ClustersData(), budget=0.6))
        assert callback.summary()["keep_rate"] < 1
        assert timer.seconds > 0
        assert "training_step" not in vars(run.strategy)
    assert assistant.sums[1].sum() == callback.summary()["instances_seen"]


def test_loops_without_a_trainer(names, monkeypatch):
    """They have few lines more than a loop without filtering, and drop what the model knows."""
    ones = [torch.nn.Linear(ordinary.CountingDataset(1)[0][0].numel(), ordinary.NUM_CLASSES) for _ in range(2)]
    monkeypatch.setattr(torch.nn, "Linear", lambda *sizes: ones.pop())
    for block in blocks("python", "without-a-trainer"):
        assert block.count("# +") <= 15
        exec(compile(block, "without-a-trainer.md", "exec"), names)
        sampler = names["sampler"]
        assert 5 * 6 * 20 <= sampler.num_kept < sampler.num_considered
        assert names["seen"].all()


# What Lightning's use of jsonargparse, whose new versions deprecate some of it, has to say is not ours.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("names_the_module", [True, False])
def test_yaml_block_switches_filtering_on(tmp_path, monkeypatch, names_the_module):
    pytest.importorskip("jsonargparse")
    import yaml
    from pytorch_lightning.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["main.py"])
    (block,) = blocks("yaml", "get-started")
    block = block.replace("my_project.MyLightningModule", "tests.helpers.ordinary.Classifier")
    block = block.replace("my_project.MyDataModule", "tests.helpers.ordinary.ClustersData")
    settings = yaml.safe_load(block)
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    settings["seed_everything"] = False  # it would stay in the environment
    settings["trainer"] |= {**quiet, "enable_progress_bar": False, "enable_model_summary": False}
    if names_the_module:
        settings["model"] = {"lr": 0.1}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    cli = LightningCLI(
        *[ordinary.Classifier] * names_the_module, save_config_callback=None, args=["fit", "--config", str(path)]
    )
    assert isinstance(cli.datamodule, AutoAssistDataModule)
    assert cli.datamodule.wrapped.loader_options["batch_size"] == 10
    assert cli.trainer.global_step == 12 * 6
    (callback,) = (one for one in cli.trainer.callbacks if isinstance(one, AutoAssistCallback))
    assert type(callback.policy).__name__ == "InfoBatchPolicy"
    assert callback.summary()["keep_rate"] < 0.9


COMMANDS = sorted({line for block in blocks("bash") for line in block.splitlines() if line.startswith("autoassist ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch, tmp_path, capsys):
    """Parsed, with arguments that lead nowhere: an error about them, none about the words."""
    import shlex

    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[1:]
    # Not to be taken for a project, which would be asked for.
    words = [word.replace("logs/", "./logs/").replace("me/", "./me/") for word in words]
    assert main(words) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES)
def test_files_and_sections_that_a_page_names_are_there(page):
    folder = ROOT if page == "README" else DOCS
    for link, section in re.findall(r"\]\(((?!https?:)[^)#]*)(?:#([^)]+))?\)", PAGES[page]):
        # The site has the notebooks beside its pages.
        path = ROOT / link if link.startswith("notebooks/") else folder / link
        assert path.exists(), link
        if section:
            text = path.read_text(encoding="utf-8") if link else PAGES[page]
            assert section in sections_of(text), f"{link}#{section}"


def sections_of(text):
    """What the sections of a page are called in addresses."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


OTHER_PAGES = [path for path in sorted(ROOT.glob("*.md")) if path.stem != "README"]
OTHER_PAGES += [*sorted((DOCS / "decisions").glob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]


@pytest.mark.parametrize("path", OTHER_PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_other_pages_name_are_there(path):
    for link in re.findall(r"\]\(((?!https?:|#)[^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


def test_the_readme_is_read_in_three_minutes():
    assert len(README.splitlines()) <= 150


def test_every_promise_is_kept_by_a_test_that_exists():
    root = ROOT
    section = PAGES["guarantees"].split("## Caveats")[0]
    promises = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(promises) > 15
    for promise in promises:
        kept_by = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise.split("|")[2])
        assert kept_by, promise
        for file, test in kept_by:
            defined = {
                node.name for node in ast.parse((root / file).read_text()).body if isinstance(node, ast.FunctionDef)
            }
            assert test in defined if test else any(name.startswith("test_") for name in defined), promise


def test_citation_file_cites_what_the_readme_cites():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["title"] in README
    (entry,) = blocks("bibtex", "README")
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert authors in entry
    assert f"{{{paper['year']}}}" in entry


def test_the_version_is_written_once():
    root = ROOT
    for name in ("setup.cfg", "pyproject.toml", "CITATION.cff"):
        assert lightning_autoassist.__version__ not in (root / name).read_text()
