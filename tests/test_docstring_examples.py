"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest

EXAMPLES = ("config.formula", "data.loader.parquet", "schema.data_schema")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_print_what_they_say(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"torchrec_adrec.{name}"))
    assert result.attempted and not result.failed
