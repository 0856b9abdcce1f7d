"""The examples in docstrings give what they show."""

import doctest
from types import ModuleType

import pytest

from torchrec_adrec import schema
from torchrec_adrec.data import column


@pytest.mark.parametrize("module", [schema, column])
def test_examples_give_what_they_show(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted and not results.failed
