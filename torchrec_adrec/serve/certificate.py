"""The certificate that a served score is the trained score, and its check at the start.

`adrec certify` computes held-out requests in every way there is, compares, and writes
RUN/certificate.json. It is bound to what it was made of by hashes, and holds some of
the requests with their scores, which are computed again before a run is served.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

import torchrec_adrec
from torchrec_adrec.distributed.checkpoint import Checkpoint
from torchrec_adrec.errors import ManifestError, reason
from torchrec_adrec.index.manifest import MANIFEST
from torchrec_adrec.runs.stages import CONFIG, DATA, RANKING, RETRIEVAL
from torchrec_adrec.runtime.files import HASHES, sha256, write_durably
from torchrec_adrec.serve.bundle import CERTIFICATE

AGAIN = "run `adrec certify`, or remove the certificate to serve without one"
CODE = "code"  # the part that may differ as long as the numbers agree
# Largest difference of a prediction, as a share of it, between two ways of computing it
# in float32. Another batch, another number of ranks or another processor rounds sums in
# another order, which makes 1e-5 of a logit of 10; the last checkpoint in the place of
# the best one changes predictions by a tenth and more.
PREDICTION_TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}

log = logging.getLogger(__name__)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Comparison(_Frozen):
    """How far two ways of computing the same numbers are apart.

    Attributes:
        name: of the two ways.
        count: how many numbers, or vectors, were compared.
        largest: the largest difference.
        unit: of which the difference is a share.
        allowed: the largest that passes; None: it is told and not judged.
        overlap: share of the ten best ads that both ways have in common.
    """

    name: str
    count: int
    largest: float
    unit: str
    allowed: float | None
    overlap: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.allowed is None or self.largest <= self.allowed


class Sample(_Frozen):
    """A request that is answered again at the start.

    Attributes:
        user: raw columns.
        ads: (n,) ids.
        scores: (n,) inner products of the towers, from the index.
        predictions: (n,) of each label.
    """

    user: dict[str, int | float | str | list[str] | None]
    ads: list[int]
    scores: list[float]
    predictions: dict[str, list[float]]


class Certificate(_Frozen):
    """What `certificate.json` holds.

    Attributes:
        made_of: part -> hash of it, see `hashes_of`.
        requests: how many were compared.
        comparisons: with their differences, all of them allowed.
        samples: requests that are answered again at the start.
    """

    made_of: dict[str, str]
    requests: int
    comparisons: list[Comparison]
    samples: list[Sample]

    def save(self, run: Path) -> None:
        """Write the file, whole or not at all."""
        write_durably(run / CERTIFICATE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, run: Path) -> Self | None:
        """Read the file; None where there is none.

        Raises:
            ManifestError: it is damaged.
        """
        path = run / CERTIFICATE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path}: {reason(error)}; {AGAIN}") from None

    def check_parts(self, run: Path, parts: Mapping[str, str]) -> None:
        """Refuse a run whose parts are others than those that were certified.

        Other code may compute the same numbers, so it is told, and the samples decide.

        Args:
            run: its folder.
            parts: what `hashes_of` returns of it.

        Raises:
            ManifestError: names the parts.
        """
        other = [name for name in parts if self.made_of.get(name) != parts[name]]
        changed = [
            f"{name} (certified {self.made_of.get(name, 'none')[:12]}, the run has"
            f" {parts[name][:12]})"
            for name in other
            if name != CODE
        ]
        if changed:
            raise ManifestError(
                f"{run / CERTIFICATE} is stale, it was made of other parts:"
                f" {', '.join(changed)}; {AGAIN}"
            )
        if other:
            log.warning(
                "%s was made by other code of this package; its samples are compared",
                run / CERTIFICATE,
            )


def hashes_of(
    run: Path, towers: Checkpoint, ranker: Checkpoint, version: Path
) -> dict[str, str]:
    """Hash what decides a served score: part -> sha256.

    Each is the hash of a file of hashes, which loading compares with the files.

    Args:
        run: its folder.
        towers, ranker: the checkpoints, with calibration and blend.
        version: folder of the index.
    """
    folders = (run / RETRIEVAL.name, run / RANKING.name, version)
    return {
        "transforms": sha256(run / DATA.name / HASHES),
        "towers": sha256(towers.path / HASHES),
        "ranker": sha256(ranker.path / HASHES),
        "config": _joined(sha256(folder / CONFIG) for folder in folders),
        "index": sha256(version / MANIFEST),
        CODE: code_hash(),
    }


def code_hash() -> str:
    """Hash every source file of this package, by its name and its bytes."""
    package = Path(torchrec_adrec.__file__).parent
    paths = sorted(package.rglob("*.py"))
    return _joined(f"{p.relative_to(package).as_posix()} {sha256(p)}" for p in paths)


def _joined(texts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
