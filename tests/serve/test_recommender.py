"""The example that people copy works, and the gate measured what is served."""

import doctest
from pathlib import Path

from torchrec_adrec.config.run import Config
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.serve import recommender
from torchrec_adrec.serve.recommender import Recommender


def test_the_example_in_the_docstring_is_true(finished_run: Path) -> None:
    """Run as it is printed, but on a run that is here."""
    names = vars(recommender) | {"Path": lambda _: finished_run}
    (example,) = doctest.DocTestFinder(recurse=False).find(Recommender, globs=names)
    assert len(example.examples) == 4
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_gate_measured_as_many_ads_as_are_retrieved(
    finished_run: Path, small_config: Config
) -> None:
    gate = IndexManifest.load(stage_folder(finished_run, "index")).gate
    served = Recommender.load(finished_run)
    answer = served.recommend({})
    candidates = small_config.recommend.candidates
    assert gate.k == answer.candidates == served.settings.candidates == candidates
    assert gate.target_recall == small_config.index.target_recall <= gate.recall
