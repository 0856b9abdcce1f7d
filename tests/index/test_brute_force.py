"""The gate's exact search, shared by ranks, each of which reads its own ads only."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_index import K, N, built, corpus, exported, on_threads

from torchrec_adrec.errors import GateError
from torchrec_adrec.index.brute_force import VECTORS, Answers, Question, brute_force
from torchrec_adrec.index.embeddings import Embeddings
from torchrec_adrec.index.gate import gate_questions, tune_and_validate


def questions() -> list[Question]:
    """All ads, half of them, and fewer eligible ones than a part holds."""
    users, rng = corpus().queries, np.random.default_rng(3)
    return [
        Question(users, K),
        Question(users[:7], K, rng.random(N) < 0.5),
        Question(users[:7], 5, np.isin(np.arange(N), [3, 700, 701, 2001, 2999])),
    ]


def answered(world_size: int, folder: Path) -> Answers:
    folder.mkdir()
    embeddings = exported(corpus(), folder)
    answers = on_threads(
        world_size, lambda rank: brute_force(embeddings, questions(), rank, folder)
    )
    assert [answer is None for answer in answers] == [False] + [True] * (world_size - 1)
    assert not list(folder.glob("*.npz")) and not (folder / VECTORS).exists()
    first: Answers = answers[0]
    return first


@pytest.mark.parametrize("world_size", [2, 4, 9])
def test_any_number_of_ranks_finds_the_same_ads(
    world_size: int, tmp_path: Path
) -> None:
    one = answered(1, tmp_path / "one")
    many = answered(world_size, tmp_path / "many")
    for expected, top in zip(one.tops, many.tops, strict=True):
        np.testing.assert_array_equal(np.sort(expected.rows), np.sort(top.rows))
        np.testing.assert_array_equal(expected.thresholds, top.thresholds)
    np.testing.assert_array_equal(one.lengths, many.lengths)
    np.testing.assert_array_equal(one.vectors, many.vectors)


def test_the_answers_are_those_of_one_product_of_all(tmp_path: Path) -> None:
    answers = answered(2, tmp_path / "two")
    data = corpus()
    vectors = data.exported().vectors
    np.testing.assert_array_equal(answers.vectors, vectors)
    np.testing.assert_allclose(answers.lengths, np.linalg.norm(vectors, axis=1))
    for question, top in zip(questions(), answers.tops, strict=True):
        products = question.queries @ vectors.T
        if question.mask is not None:
            products[:, ~question.mask] = -np.inf
        best = np.argsort(-products, axis=1)[:, : question.k]
        np.testing.assert_array_equal(np.sort(top.rows), np.sort(best))


def test_each_rank_reads_its_own_parts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[range] = []
    read = Embeddings.read

    def watched(self: Embeddings, parts: range) -> Any:
        ranges.append(parts)
        yield from read(self, parts)

    monkeypatch.setattr(Embeddings, "read", watched)
    answered(2, tmp_path / "two")
    assert sorted(ranges, key=lambda parts: parts.start) == [range(3), range(3, 6)]


class Shuffled(Embeddings):
    """Numbers the ads of each part from the last to the first."""

    def read(self, parts: range) -> Any:
        for numbers, ids, vectors in super().read(parts):
            yield numbers[::-1], ids, vectors


@pytest.mark.parametrize("fault", ["users", "ads"])
def test_a_rank_that_does_other_work_is_told(fault: str, tmp_path: Path) -> None:
    """Its ads would be the wrong ones to measure a recall by, without an error."""
    embeddings = exported(corpus(), tmp_path)
    asked = questions()[:1]
    others = [Question(-question.queries, question.k) for question in asked]
    shuffled = Shuffled(embeddings.folder, embeddings.manifest)

    def work(rank: Any) -> Any:
        is_other = not rank.is_first
        ads = shuffled if is_other and fault == "ads" else embeddings
        users = others if is_other and fault == "users" else asked
        return brute_force(ads, users, rank, tmp_path)

    with pytest.raises(GateError, match="searched for other users, or read other ads"):
        on_threads(2, work)


def test_the_gate_measures_the_same_by_what_ranks_have_searched(tmp_path: Path) -> None:
    data, folder = corpus(), tmp_path / "index"
    index = built("ivf_flat", 2, folder, data)
    asked = gate_questions(data.queries, N, K)
    embeddings = Embeddings.open(folder)
    answers, _ = on_threads(
        2, lambda rank: brute_force(embeddings, asked, rank, folder)
    )
    fixed, timed = {"nprobe": 9.0}, {"milliseconds", "filtered"}
    alone, together = (
        tune_and_validate(
            index, data.exported(), data.queries, K, 0.5, fixed, exact=tops
        ).model_dump(exclude=timed)
        for tops in (None, answers.tops)
    )
    assert alone == together and alone["recall"] < 1
