"""The example that people copy works."""

import doctest
from pathlib import Path

from torchrec_adrec.serve import recommender
from torchrec_adrec.serve.recommender import Recommender


def test_the_example_in_the_docstring_is_true(finished_run: Path) -> None:
    """Run as it is printed, but on a run that is here."""
    names = vars(recommender) | {"Path": lambda _: finished_run}
    (example,) = doctest.DocTestFinder(recurse=False).find(Recommender, globs=names)
    assert len(example.examples) == 4
    assert doctest.DocTestRunner().run(example).failed == 0
