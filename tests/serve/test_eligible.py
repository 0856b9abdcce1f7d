"""Which ads may be shown: bits, ids or a condition; and what is served of them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from torchrec_adrec.errors import DataError
from torchrec_adrec.serve.eligible import eligible_ids
from torchrec_adrec.serve.recommender import Recommender

CATALOG = pl.DataFrame(
    {
        "ad_id": [2**60, 2**60 + 1, 2**60 + 5],
        "country": ["DE", "FR", None],
        "budget": [0.0, 2.5, 7.0],
    }
)


@pytest.mark.parametrize(
    ("eligible", "rows"),
    [
        ("budget > 0", [1, 2]),
        ("budget > 0 AND country = 'FR'", [1]),
        ("country <> 'FR'", [0]),  # unknown is no
        ("country IS NULL", [2]),
        ("ad_id = 1152921504606846981", [2]),
        (pl.col("budget") < 1, [0]),
        (np.array([True, False, True]), [0, 2]),
        (np.array([2**60 + 5, 2**60, 2**60]), [0, 2]),
        (np.array([], dtype=np.int64), []),
    ],
)
def test_bits_ids_and_conditions(eligible: Any, rows: list[int]) -> None:
    assert eligible_ids(eligible, CATALOG).tolist() == CATALOG["ad_id"][rows].to_list()


@pytest.mark.parametrize(
    ("eligible", "message"),
    [
        ("paused = 0", "columns are ad_id, country, budget"),
        ("budget >", "eligible = 'budget >'"),
        ("budget + 1", "expected true or false for each ad"),
        (pl.col("budget").max() > 1, "gives 1 values of Boolean"),
        (np.array([True, False]), "has 2 bits, expected one for each of the 3 ads"),
        (np.array([2**60, 7, 8]), "ad 7 is eligible and not in the catalog, nor are 1"),
        (np.array([1.0]), "expected bools or ids"),
    ],
)
def test_what_selects_nothing_that_there_is_is_refused(
    eligible: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        eligible_ids(eligible, CATALOG)


def test_only_eligible_ads_are_recommended(finished_run: Path) -> None:
    served = Recommender.load(finished_run)
    ads = served.recommend({}, top=10).ads["ad_id"].to_list()
    bits = ~np.isin(served.scorer.ids, ads[:3])
    prepared = served.eligible_ads(bits)
    for eligible in (bits, served.scorer.ids[bits], prepared):
        answer = served.recommend({}, top=7, eligible=eligible).ads["ad_id"]
        assert not {*ads[:3]} & {*answer}
    two = served.recommend({}, eligible=np.array(ads[4:6]))
    assert {*two.ads["ad_id"]} == {*ads[4:6]} and two.candidates == 2
    with pytest.raises(DataError, match=r"top is 3, expected 1 to 2"):
        served.recommend({}, top=3, eligible=np.array(ads[4:6]))
    with pytest.raises(DataError, match="no ad of the catalog is eligible"):
        served.recommend({}, eligible="ad_id = 7")
