"""A certified run is served, and every planted mismatch is refused with its reason."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_run import SETTINGS, last, train_ranker

from torchrec_adrec.certify import certify as certifying
from torchrec_adrec.certify.certify import certify, issue
from torchrec_adrec.certify.eager import Computed, Pairs, compute
from torchrec_adrec.config.run import load_config
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.errors import CheckpointError, ConfigError, ManifestError
from torchrec_adrec.index.manifest import IndexManifest
from torchrec_adrec.runs.stages import CONFIG, RECORD, stage_folder
from torchrec_adrec.runtime.files import HASHES, Origin, sha256
from torchrec_adrec.serve import certificate
from torchrec_adrec.serve.bundle import CERTIFICATE, pack
from torchrec_adrec.serve.certificate import Certificate
from torchrec_adrec.serve.open_run import open_run
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.serve.scorer import RankingScorer
from torchrec_adrec.tasks.sharded import final_checkpoint

REQUESTS = 6


@pytest.fixture(scope="module")
def certified(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with a certificate, for which two real ranks computed."""
    out = tmp_path_factory.mktemp("certified") / "run"
    shutil.copytree(run, out)
    handler = signal.getsignal(signal.SIGTERM)
    issue(out, certify(out, REQUESTS))
    assert signal.getsignal(signal.SIGTERM) is handler
    return out


@pytest.fixture
def copy(certified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified, tmp_path / "run"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def rehash(folder: Path, name: str) -> None:
    """Let the hash of a file be that of the planted one."""
    edit(folder / HASHES, lambda hashes: hashes | {name: sha256(folder / name)})


def test_all_ways_agree_and_the_run_is_served(certified: Path) -> None:
    loaded = Certificate.load(certified)
    assert loaded is not None and loaded.requests == REQUESTS
    judged = {c.name: c for c in loaded.comparisons if c.allowed is not None}
    assert list(judged) == [
        "1 rank = 2 ranks: vectors of users",
        "1 rank = 2 ranks: vectors of ads",
        "1 rank = 2 ranks: predictions",
        "1 rank = exported vectors",
        "exported vectors = served scores",
        "1 rank = served predictions",
    ]
    assert all(c.count >= 10 * REQUESTS for c in judged.values())
    overlaps = {c.name: c.overlap for c in loaded.comparisons if c.allowed is None}
    assert overlaps.keys() == {
        "index exact = exact search",
        "engine bfloat16 = float32",
        "engine int8 = float32",
    }
    assert all(overlap is not None and overlap > 0.5 for overlap in overlaps.values())
    assert Recommender.load(certified).recommend({}).candidates == 50


def other_transform(run: Path) -> None:
    def shift(fitted: Any) -> Any:
        for transform in fitted["transforms"]:
            transform["mean"] += 1
        return fitted

    edit(run / "data/transforms.json", shift)
    rehash(run / "data", "transforms.json")


def last_checkpoint(stage: str) -> Callable[[Path], None]:
    def plant(run: Path) -> None:
        origin = last(run / stage).origin.model_dump()
        edit(run / stage / "metrics.json", lambda m: m | {"checkpoint": origin})

    return plant


def other_ranker(run: Path) -> None:
    """As good as the certified one, trained on the same towers."""
    quick = ("seed=1", "train.epochs=1", "train.evaluate_every=1000")
    config = load_config(None, [*SETTINGS, *quick])
    shutil.rmtree(run / "ranking")
    with process_group("cpu") as process:
        train_ranker(run, config, process)


def swapped_ids(run: Path) -> None:
    parts = open_run(run, is_certified=False)
    user = json.loads((run / "export/examples.json").read_text())[0]["user"]
    (best, *_, worst), _ = parts.retrieve(user)
    version = stage_folder(run, "index")
    ids = np.load(version / "ids.npy")
    rows = [int(np.flatnonzero(ids == ad)[0]) for ad in (best, worst)]
    ids[rows] = ids[rows[::-1]]
    np.save(version / "ids.npy", ids)
    manifest = IndexManifest.load(version)
    files = manifest.files | {"ids.npy": sha256(version / "ids.npy")}
    manifest.model_copy(update={"files": files}).save(version)


def stale_index(run: Path) -> None:
    version = stage_folder(run, "index")
    manifest = IndexManifest.load(version)
    other = Origin(step=9, weights="0" * 16)
    embeddings = manifest.embeddings.model_copy(update={"checkpoint": other})
    manifest.model_copy(update={"embeddings": embeddings}).save(version)


def rebuilt_index(run: Path) -> None:
    version = stage_folder(run, "index")
    manifest = IndexManifest.load(version)
    gate = manifest.gate.model_copy(update={"choice": "built on another day"})
    manifest.model_copy(update={"gate": gate}).save(version)


def other_similarity(run: Path) -> None:
    path = run / "retrieval" / CONFIG
    text = path.read_text()
    assert "similarity: cosine" in text
    path.write_text(text.replace("similarity: cosine", "similarity: dot"))
    record = run / "retrieval" / RECORD
    edit(record, lambda r: r | {"config": sha256(path)})


def flipped_byte(run: Path) -> None:
    path = max(final_checkpoint(run / "ranking").path.glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# What is planted, why a certified run is refused, and why one without a certificate is;
# None: nothing but the certificate could tell.
MISMATCHES = (
    (other_transform, "is stale, .*: transforms ", "gives other users than"),
    (last_checkpoint("retrieval"), "index was made from step", "was made from step"),
    (last_checkpoint("ranking"), r"is stale, .*: ranker \(certified", None),
    (other_ranker, r"is stale, .*: ranker \(certified .*config", None),
    (swapped_ids, r"is stale, .*: index \(certified", "other scores of the index than"),
    (stale_index, "was made from step 9", "was made from step 9"),
    (rebuilt_index, r"is stale, .*: index \(certified", None),
    (other_similarity, r"is stale, .*: config \(certified", "gives other ads than"),
    (flipped_byte, "distcp: expected sha256", "distcp: expected sha256"),
)


@pytest.mark.parametrize(
    ("plant", "certified_reason", "reason"),
    MISMATCHES,
    ids=[
        "transform",
        "towers",
        "last",
        "ranker",
        "ids",
        "stale",
        "rebuilt",
        "dot",
        "bit",
    ],
)
def test_a_planted_mismatch_is_refused_with_its_reason(
    plant: Callable[[Path], None], certified_reason: str, reason: str | None, copy: Path
) -> None:
    plant(copy)
    with pytest.raises((ManifestError, CheckpointError), match=certified_reason):
        Recommender.load(copy)
    (copy / CERTIFICATE).unlink()
    if reason is None:
        assert Recommender.load(copy).recommend({}).candidates == 50
        return
    with pytest.raises((ManifestError, CheckpointError), match=reason):
        Recommender.load(copy)


def test_other_numbers_of_the_same_parts_are_refused(
    certified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of serving alone: no hash of the run knows of it."""
    exact = RankingScorer.score

    def biased(self: RankingScorer, *args: Any) -> Any:
        return {name: 1.01 * p for name, p in exact(self, *args).items()}

    monkeypatch.setattr(RankingScorer, "score", biased)
    with pytest.raises(
        ManifestError, match=r"request 0, ad \d+ has click .* certified"
    ):
        Recommender.load(certified)


def test_other_code_is_told_and_the_numbers_decide(
    certified: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificate, "code_hash", lambda: "0" * 64)
    assert Recommender.load(certified).recommend({}).candidates == 50
    assert "was made by other code" in caplog.text


def test_a_damaged_certificate_is_refused(copy: Path) -> None:
    (copy / CERTIFICATE).write_text("{}")
    with pytest.raises(ManifestError, match=r"certificate\.json: made_of: Field re"):
        Recommender.load(copy)


def test_ranks_that_disagree_make_no_certificate(copy: Path) -> None:
    def wrong(run: Path, pairs: Pairs, ranks: int) -> Computed:
        computed = compute(run, pairs)
        click = 1.01 * computed.predictions["click"]
        predictions = computed.predictions | {"click": click}
        return Computed(computed.users, computed.ads, predictions)

    before = (copy / CERTIFICATE).read_bytes()
    unequal = certify(copy, 2, ranks=wrong)
    with pytest.raises(ManifestError, match="far apart are: 1 rank = 2 ranks: predic"):
        issue(copy, unequal)
    assert (copy / CERTIFICATE).read_bytes() == before


def test_a_bundle_holds_the_certificate_and_is_not_certified_again(
    certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(certified, tmp_path / "bundle")
    assert Certificate.load(tmp_path / "bundle") == Certificate.load(certified)
    monkeypatch.setattr(certifying, "answers_of", None)
    with pytest.raises(ConfigError, match="is a bundle, in which nothing may change"):
        certify(tmp_path / "bundle", 1)
