"""Policies and Assistants are imported from one module each, which names and explains all of them."""

import re

import pytest

import lightning_autoassist
from lightning_autoassist import assistants, policies


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
