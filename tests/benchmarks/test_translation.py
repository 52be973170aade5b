from __future__ import annotations

import gettext
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch

from benchmarks.common import rows
from benchmarks.common.jobs import PAPER
from benchmarks.translation import __main__ as command
from benchmarks.translation import data as translation_data
from benchmarks.translation import model, pairs, report, runs
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import trainer

for package in ("sentencepiece", "sacrebleu"):
    pytest.importorskip(package)
# What swig makes of sentencepiece.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


@pytest.fixture(scope="module")
def numbers():
    corpus = translation_data.load_corpus("numbers", Path("nowhere"), choosing=False, max_words=30)
    return corpus, translation_data.learn_vocabulary(corpus.train, 120)


def tiny(vocabulary, seed=0):
    torch.manual_seed(seed)
    return model.Translator(model.SIZES["tiny"], len(vocabulary)).eval()


# ---- how translations are measured


def test_a_copied_reference_has_a_bleu_of_100(numbers):
    references = [pair.target for pair in numbers[0].held_out]
    reached = model.quality(references, references)
    assert (reached.bleu, reached.chrf) == (pytest.approx(100.0), pytest.approx(100.0))
    assert all("version:" in signature for signature in reached.signatures)
    assert model.quality(references[1:] + references[:1], references).bleu < 60


def test_texts_come_back_from_their_tokens(numbers):
    corpus, vocabulary = numbers
    texts = [pair.target for pair in corpus.held_out]
    rows = torch.nn.utils.rnn.pad_sequence(vocabulary.encode(texts), batch_first=True)
    assert vocabulary.decode(rows) == texts


def log_probability(net, source, target):
    """Of a target with a beginning and, where it has one, an end; and its number of tokens after the beginning."""
    logits = net(source[None], target[None, :-1])[0]
    return float(logits.log_softmax(-1).gather(1, target[1:, None]).sum()), len(target) - 1


def a_little_trained(numbers):
    """So that sentences end, some early and some late."""
    net = tiny(numbers[1]).train()
    data = translation_data.PairData(*numbers, 1000, is_packed=True)
    module = model.TranslationModule(net, numbers[1], [], 1e-2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for batch in islice(cycle([*data.train_dataloader()]), 120):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    return net.eval()


def test_greedy_and_beam_search_are_what_a_plain_search_finds(numbers):
    """One sentence at a time, hypotheses as lists: no batch, no tensors."""
    corpus, vocabulary = numbers
    net = a_little_trained(numbers).requires_grad_(False)
    sources = vocabulary.encode([pair.source for pair in corpus.held_out[:12]])
    padded = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True).long()
    most = int(1.5 * padded.shape[1]) + 10

    def plain_search(source, beam):
        open_and_ended = [([translation_data.BEGIN], 0.0)]
        for _ in range(most):
            candidates = []
            for tokens, total in open_and_ended:
                if translation_data.END in tokens:
                    candidates.append((tokens, total))
                    continue
                steps = net(source[None], torch.tensor([tokens]))[0, -1].log_softmax(-1)
                steps[[translation_data.PAD, translation_data.BEGIN]] = -torch.inf
                candidates += [([*tokens, token], total + float(step)) for token, step in enumerate(steps)]
            power = 0.6 if beam > 1 else 0.0
            candidates.sort(key=lambda one: -one[1] / ((4 + len(one[0])) / 6) ** power)
            open_and_ended = candidates[:beam]
        return open_and_ended[0][0]

    for beam in (1, 3):
        found = model.translate(net, padded, beam).tolist()
        expected = [plain_search(source.long(), beam) for source in sources]
        assert [row[: len(best)] for row, best in zip(found, expected, strict=True)] == expected
        assert all(set(row[len(best) :]) <= {translation_data.PAD} for row, best in zip(found, expected, strict=True))
        assert len({len(best) for best in expected}) > 1


@torch.no_grad()
def test_padding_and_later_tokens_change_no_logits(numbers):
    _, vocabulary = numbers
    net = tiny(vocabulary)
    source, target = (
        rows[0].long() for rows in (vocabulary.encode([p[1]]) for p in [("", "nine hundred"), ("", "neun")])
    )
    alone = net(source[None], target[None])
    padded = net(torch.nn.functional.pad(source, (0, 5))[None], torch.nn.functional.pad(target, (0, 3), value=7)[None])
    torch.testing.assert_close(padded[:, : len(target)], alone, rtol=1e-4, atol=1e-5)


# ---- batches


@pytest.mark.parametrize("is_packed", [True, False])
def test_batches_of_pairs_never_exceed_their_tokens(numbers, is_packed):
    """Packed by the loader of the full run, and by AutoAssist."""
    sizes = []
    data = translation_data.PairData(*numbers, 300, is_packed=is_packed)

    class Watched(model.TranslationModule):
        def training_step(self, batch, batch_idx):
            sources, targets = batch
            sizes.append(sources.numel() + targets[:, 1:].numel())
            return super().training_step(batch, batch_idx)

    references = [pair.target for pair in numbers[0].held_out]
    module = Watched(tiny(numbers[1]).train(), numbers[1], references, 1e-3)
    callbacks = [] if is_packed else [AutoAssistCallback(policy="proportional")]
    filtered = data if is_packed else AutoAssistDataModule(data, budget=1.0, max_tokens=300)
    run = trainer(max_epochs=1 if is_packed else 3, callbacks=callbacks, limit_val_batches=0)
    run.fit(module, datamodule=filtered)
    assert len(sizes) == run.max_epochs * -(-int(data.train.lengths.sum()) // 300)
    assert max(sizes) <= 300
    assert max(sizes) > 270


# ---- the pairs


def test_pairs_are_made_from_pages_catalogues_and_descriptions(tmp_path):
    """Packages as they are laid out, with what has to be left out of them."""
    pages = {
        "en-US": '<h1 id="hd_id1" dir="auto"><a name="x"></a>Inserting a &amp; new table</h1>'
        '<p id="par_id2">Only here</p><p id="par_id3" class="paragraph">Left, right,\n top and bottom</p>'
        '<div id="other">Not of the text at all</div>',
        "de": '<h1 id="hd_id1">Eine &amp; neue Tabelle einfügen</h1><p id="par_id3">Links, rechts, oben und unten</p>'
        '<div id="other">Das ist nicht aus dem Text</div>',
    }
    for language, page in pages.items():
        folder = tmp_path / "usr/share/libreoffice/help" / language / "text/swriter"
        folder.mkdir(parents=True)
        (folder / "one.html").write_text(page, encoding="utf-8")
    messages = tmp_path / "usr/lib/libreoffice/program/resource/de/LC_MESSAGES"
    messages.mkdir(parents=True)
    entries = {
        "": "Content-Type: text/plain; charset=UTF-8\n",
        "dialog|label\4Save the _document as": "Das ~Dokument speichern als",
        "dialog|button\4OK": "OK",
    }
    (messages / "sw.mo").write_bytes(catalogue(entries))
    described = [pairs.Pair("package/x", "a small tool for tests", "ein kleines Werkzeug für Tests")]
    assert pairs.extract(tmp_path, described) == [
        pairs.Pair("help/text/swriter/one.html", "Inserting a & new table", "Eine & neue Tabelle einfügen"),
        pairs.Pair("help/text/swriter/one.html", "Left, right, top and bottom", "Links, rechts, oben und unten"),
        pairs.Pair("messages/sw/dialog", "Save the document as", "Das Dokument speichern als"),
        *described,
    ]


def catalogue(entries):
    """A gettext catalogue, as msgfmt writes it."""
    import struct

    keys = sorted(entries)
    ids = [key.encode() for key in keys]
    texts = [entries[key].encode() for key in keys]
    start = 28 + 16 * len(keys)
    table, blob = b"", b""
    for strings in (ids, texts):
        for string in strings:
            table += struct.pack("<II", len(string), start + len(blob))
            blob += string + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0)
    content = header + table + blob
    import io

    assert gettext.GNUTranslations(io.BytesIO(content))._catalog
    return content


DESCRIPTIONS = {
    "en": [
        (
            "one",
            "0",
            "a tool\n It does one thing.\n .\n It has parts:\n  * the first of them\n  * the second of them",
        ),
        ("two", "1", "another tool\n One paragraph."),
    ],
    "de": [
        (
            "one",
            "0",
            "ein Werkzeug\n Es tut eines.\n .\n Es hat Teile:\n  * den ersten davon\n  * den zweiten davon",
        ),
        ("two", "1", "ein anderes\n Ein Absatz.\n .\n Und noch einer."),
    ],
}


class Lists:
    """Package lists of two languages."""

    def index_files(self, kind, language):
        assert kind == "Translations"
        return [language]

    def stanzas(self, language):
        for package, digest, text in DESCRIPTIONS[language]:
            yield {"Package": package, "Description-md5": digest, f"Description-{language}": text}


def test_descriptions_of_one_structure_are_paired_by_their_parts():
    found = [(pair.group, *(" ".join(text.split()) for text in pair[1:])) for pair in pairs.described(Lists())]
    assert found == [
        ("package/one", "a tool", "ein Werkzeug"),
        ("package/one", "It does one thing.", "Es tut eines."),
        ("package/one", "It has parts:", "Es hat Teile:"),
        ("package/one", "the first of them", "den ersten davon"),
        ("package/one", "the second of them", "den zweiten davon"),
    ]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("OK then", "Nun denn gut"),
        ("the very same text", "the very same text"),
        ("a b c", "ein sehr viel längerer Text als es der andere ist"),
        ("1 2 3 + 4", "1 2 3 + 5"),
        ("Open the file now", "Open the file with it"),
    ],
)
def test_what_is_no_translation_is_left_out(source, target):
    assert not pairs.is_clean(pairs.Pair("group", source, target))


def test_groups_are_split_as_wholes_and_test_pairs_are_never_trained_on():
    tuning, final = (
        translation_data.load_corpus("numbers", Path("nowhere"), choosing=choosing, max_words=30)
        for choosing in (True, False)
    )
    groups = [{pair.group for pair in part} for part in (tuning.train, tuning.held_out, final.train, final.held_out)]
    assert not groups[0] & groups[1]
    assert not groups[2] & groups[3]
    assert not groups[3] & (groups[0] | groups[1])
    assert groups[0] | groups[1] == groups[2]
    counts = Counter(pair.split for pair in final.train)
    assert set(counts) == set(range(1, 20))


def test_without_apt_it_says_how_to_get_the_data(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["translation.py", "--data-dir", str(tmp_path)])
    monkeypatch.setenv("PATH", "")
    threads = torch.get_num_threads()
    try:
        with pytest.raises(
            SystemExit, match=r"the data could not be loaded: .*made from Debian packages, and this machine has no apt"
        ):
            command.main()
    finally:
        torch.set_num_threads(threads)


def test_a_row_holds_what_makes_its_run(numbers):
    job = replace(
        command.TEMPLATE,
        dataset="numbers",
        size="tiny",
        vocabulary=120,
        max_tokens=2000,
        epochs=3,
        method="proportional",
        budget=0.6,
    )
    row = runs.run_job(job, *numbers)
    assert {name: row[name] for name in asdict(job)} == asdict(job)
    assert row["updates"] == 3 * -(-6 * row["train_tokens"] // 20_000)
    assert len(row["curve"]) == len(row["curve_seconds"]) == len(row["curve_cpu_seconds"]) == 3
    assert row["curve_seconds"] == sorted(row["curve_seconds"])
    assert 0 <= row["beam_bleu"] <= 100
    assert row["passes"] == pytest.approx(3 * 0.6, abs=0.2)


def test_tables_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "rows_of", lambda name: rows.rows_of(name, tmp_path))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.translation_tables().startswith("Not measured yet")
    for seed in (0, 1):
        for method, budget, bleu, seconds in (("full", 1.0, 30.0, 100.0), (PAPER, 0.6, 29.0, 65.0)):
            job = replace(command.TEMPLATE, method=method, budget=budget, seed=seed)
            row = {
                "updates": round(1000 * budget),
                "cpu_seconds": seconds,
                "beam_bleu": bleu + seed,
                "greedy_bleu": bleu - 1,
                "beam_chrf": 50.0,
                "curve": [[500 * budget, 20.0], [1000 * budget, bleu]],
                "curve_cpu_seconds": [seconds / 2, seconds],
                "train_instances": 1000,
                "held_out_instances": 100,
                "parameters": 1_000_000,
                "signatures": ["nrefs:1"],
            }
            rows.append_row("translation", {**asdict(job), **row}, tmp_path)
    table = report.translation_tables()
    assert "| full run | 1,000 | - | 30.50 ± 0.50 | - | 29.00 | 50.00 | 100 | 2 | 0.002 |" in table
    filtered = "600 | 65% | 29.50 ± 0.50 | -1.00 ± 0.00 | 28.00 | 50.00 | 65 | 2 | 0.002 |"
    assert f"| autoassist, TextAssistant, budget 0.6 | {filtered}" in table
    (curve,) = report.stale_translation_curves()
    report.write_translation_curves()
    assert (tmp_path / curve).exists()
    assert report.stale_translation_curves() == []
