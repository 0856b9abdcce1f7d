import doctest

from torchrec_adrec.data import column


def test_examples_of_docstrings_give_what_they_show() -> None:
    results = doctest.testmod(column)
    assert results.attempted and not results.failed
