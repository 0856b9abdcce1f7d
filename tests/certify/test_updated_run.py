"""Ads that were updated since the export: certified around, packed and explained."""

from pathlib import Path

import pytest
from named_ads import copy_of, ids_of, rows_of

from torchrec_adrec.certify import certify as certifying
from torchrec_adrec.certify.certify import certify, issue
from torchrec_adrec.certify.eager import Computed, Pairs, compute
from torchrec_adrec.errors import DataError
from torchrec_adrec.export.ad_file import AdIds, AdRows
from torchrec_adrec.export.update import Updater
from torchrec_adrec.runs.ad_changes import newest_changes
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.serve.bundle import pack
from torchrec_adrec.serve.certificate import Certificate
from torchrec_adrec.serve.recommender import Recommender


def on_one_rank(run: Path, pairs: Pairs, ranks: int) -> Computed:
    """Spare a launch: what several ranks compute is tested elsewhere."""
    return compute(run, pairs)


@pytest.fixture(scope="module")
def certificate(named_run: Path) -> Certificate:
    return certify(named_run, 3, ranks=on_one_rank)


def test_an_update_leaves_the_certificate_right_and_goes_into_a_bundle(
    certificate: Certificate, named_run: Path, tmp_path: Path
) -> None:
    run, first = copy_of(named_run, tmp_path / "run"), certificate
    first.save(run)
    served, user = Recommender.load(run), first.samples[0].user
    best = first.samples[0].ads[0]
    Updater(run).apply(
        AdRows.read(rows_of(tmp_path, "new,b1,2"), served.scorer.schema),
        AdIds.read(ids_of(tmp_path, str(best))),
    )
    # A certified ad was removed: the others are still compared, and the run is served.
    updated = Recommender.load(run)
    answer = updated.recommend(user).ads
    assert best not in answer[AD_ID]
    assert updated.explain(user, best).stage == "not in the catalog"
    changes = newest_changes(run)
    assert changes is not None
    (added,) = changes.ids.tolist()
    explained = updated.explain(user, added)
    assert explained.retrieval is not None and explained.columns is not None
    assert explained.retrieval.ads == len(updated.scorer.listed)
    issue(run, certify(run, 3, ranks=on_one_rank))
    second = Certificate.load(run)
    assert second is not None and second.made_of == first.made_of
    assert not any(ad in (best, added) for s in second.samples for ad in s.ads)
    pack(run, tmp_path / "b.tar")
    assert Recommender.load(tmp_path / "b.tar").recommend(user).ads.equals(answer)


def test_samples_of_which_updates_have_left_nothing(
    certificate: Certificate,
    named_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their ads were all removed: the other samples decide."""
    run = copy_of(named_run, tmp_path / "run")
    certificate.save(run)
    gone = certificate.samples[0].ads
    Updater(run).apply(remove=AdIds.read(ids_of(tmp_path, *gone)))
    answer = Recommender.load(run).recommend(certificate.samples[0].user).ads
    assert not set(gone) & set(answer[AD_ID])
    # A new certificate of nothing but such ads would be one of nothing.
    ads = [[{AD_ID: ad} for ad in gone]]
    monkeypatch.setattr(certifying, "answers_of", lambda run, users: ads)
    with pytest.raises(DataError, match="nothing but ads that were updated"):
        certify(run, 1)
