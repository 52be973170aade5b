"""Policies and Assistants are imported from one module each, which names and explains all of them."""

import re

import pytest

import lightning_autoassist
from lightning_autoassist import assistants, policies
from lightning_autoassist.filtering import names
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(("module", "registry"), [(policies, policies.POLICIES), (assistants, assistants.ASSISTANTS)])
def test_each_module_exports_and_names_its_registry(module, registry):
    assert {kind.__name__ for kind in registry.values()} <= set(module.__all__)
    rows = re.findall(r"^``(\w+)``\s+``(\w+)``", module.__doc__, re.MULTILINE)
    assert rows == [(name, kind.__name__) for name, kind in registry.items()]


def test_the_top_shows_what_one_begins_with():
    assert set(lightning_autoassist.__all__) >= {
        "Assistant",
        "AutoAssistCallback",
        "AutoAssistDataModule",
        "Policy",
        "diagnose",
    }
    concrete = {kind.__name__ for kind in (*policies.POLICIES.values(), *assistants.ASSISTANTS.values())}
    assert not concrete & set(lightning_autoassist.__all__)


@pytest.mark.parametrize("module", [policies, assistants])
def test_names_are_the_packages_own(module):
    assert all(getattr(module, name) is getattr(lightning_autoassist, name) for name in module.__all__)


def test_every_public_name_is_in_the_reference():
    """By a directive of its own, or as a class or function of a module whose members are all shown."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^\.\. (?:auto|py:)\w+:: lightning_autoassist\.(?:\w+\.)*(\w+)$", pages, re.MULTILINE))
    for module in (policies, assistants):
        assert f".. automodule:: {module.__name__}\n   :members:" in pages
        shown |= {name for name in module.__all__ if callable(getattr(module, name))}
    public = {*lightning_autoassist.__all__, *lightning_autoassist._MODULE_OF}
    assert public | {*policies.__all__, *assistants.__all__, *names.__all__} <= shown


def test_every_policy_has_a_method_card_and_says_what_it_shifts():
    cards = re.findall(r"^### (.+)$", (ROOT / "benchmarks/README.md").read_text(encoding="utf-8"), re.MULTILINE)
    carded = set(re.findall(r"`(\w+)`", "\n".join(cards)))
    assert set(policies.POLICIES) <= carded
    for name, kind in policies.POLICIES.items():
        assert name in ("uniform", "random") or "**What shifts.**" in kind.__doc__
