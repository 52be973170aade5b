"""What every test leaves as it was."""

import os
from unittest import mock

import pytest


@pytest.fixture(autouse=True, scope="module")
def environment_of_module():
    """A run of several processes leaves its rank there, and later ones would wait for others that never start."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def environment(environment_of_module):
    """The environment of the process, restored."""
    with mock.patch.dict(os.environ):
        yield
