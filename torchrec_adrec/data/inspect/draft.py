"""What is proposed so far: every step takes columns out of `left`."""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from torchrec_adrec.data.inspect.forms import Profile
from torchrec_adrec.data.inspect.repairs import Repair
from torchrec_adrec.data.inspect.sample import Sample
from torchrec_adrec.schema import RESERVED

Lines = dict[str, tuple[Any, str]]


@dataclass
class Draft:
    """A proposal that is being made.

    Attributes:
        sample: the first rows of the file.
        rows: the same, with null for every text that means no value, and a point in
            every decimal number.
        profiles: of all columns.
        left: columns that nothing was proposed for yet.
        labels, user, ad: name -> block of `data.table` and the comment beside it.
        time, user_id, ad_id: setting and comment.
        ignore: column -> reason.
        unsure: what a person should look at, as sentences.
        repairs: columns that must be rewritten.
        click: 0 and 1 of each row, null where the label is missing.
    """

    sample: Sample
    rows: pl.DataFrame
    profiles: dict[str, Profile]
    left: list[str]
    labels: Lines = field(default_factory=dict)
    user: Lines = field(default_factory=dict)
    ad: Lines = field(default_factory=dict)
    time: tuple[Any, str] | None = None
    user_id: tuple[str, str] | None = None
    ad_id: tuple[str, str] | None = None
    ignore: dict[str, str] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    click: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.Int8))

    def free_name(self, column: str) -> str:
        """A name for what a column becomes, that `data.table` allows and none has."""
        # Gerät is Gerat; a request has to be written with these names.
        plain = unicodedata.normalize("NFKD", column)
        plain = "".join(sign for sign in plain if not unicodedata.combining(sign))
        name = re.sub(r"\W+", "_", plain, flags=re.ASCII).strip("_")
        name = name if re.match("[A-Za-z]", name) else f"c_{name}"
        if name in RESERVED or name.startswith("raw_"):
            name = f"the_{name}"
        used = {**self.labels, **self.user, **self.ad}
        while name in used:
            name += "_2"
        return name

    def doubt_broken(self, column: str, expected: str) -> None:
        """Say which values of a column are broken; `prepare` counts their rows."""
        if broken := self.profiles[column].broken:
            self.unsure.append(
                f"{column}: {broken} are no {expected}: bad rows, of which"
                " `data.max_bad_rows` allows 0.1%."
            )

    def leave_out(self, column: str, why: str) -> None:
        """Ignore a column, and say why."""
        self.left.remove(column)
        self.ignore[column] = why
