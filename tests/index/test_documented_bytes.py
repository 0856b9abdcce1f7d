"""docs/production.md says how many bytes each kind of index takes for an ad."""

import re

from conftest import REPOSITORY

from torchrec_adrec.index.choose import ID_BYTES
from torchrec_adrec.index.kinds import KINDS, derive_kind

ROW = r"^\| `(\w+)` \| (\d+) \| ([\d.]+) GiB \| ([\d.]+) GiB \|$"
DIM, GIB = 64, 2**30


def test_bytes_of_an_ad_are_those_of_its_kind() -> None:
    text = (REPOSITORY / "docs/production.md").read_text()
    rows = {name: row for name, *row in re.findall(ROW, text, re.MULTILINE)}
    assert rows.keys() == set(KINDS)
    for name, row in rows.items():
        each = derive_kind(name, {}, 10**6, DIM).bytes_per_ad(DIM) + ID_BYTES
        million, hundred_million = each * 10**6 / GIB, each * 10**8 / GIB
        expected = [f"{each:.0f}", f"{million:.2f}", f"{hundred_million:.1f}"]
        assert row == expected, name
