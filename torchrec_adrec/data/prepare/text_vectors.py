"""The vectors of a prepared data set by their raw values, and those of new texts."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Float32s, Int32s
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.text_encoders import TextEncoder, open_same_encoder
from torchrec_adrec.data.vectors import from_bytes, open_distinct, position
from torchrec_adrec.schema import Schema, Side, VectorFeature


@dataclass(frozen=True)
class DistinctFolder:
    """Finds vectors by their raw values.

    Attributes:
        path: of the folder of the distinct vectors.
    """

    path: Path
    _encoders: dict[str, TextEncoder] = field(default_factory=dict, compare=False)

    def position(self, feature: VectorFeature, values: pl.Series) -> Int32s:
        """Return the place of each value of the data, (V,)."""
        places = position(self.path, feature.name, keys(values))
        assert places.all(), f"all values of {feature.name} were collected"
        return places

    def components(self, feature: VectorFeature, values: pl.Series) -> Float32s:
        """Return the vectors of any values, (V, size); known texts need no encoder.

        Raises:
            ConfigError: a text is new, and its encoder is not installed.
        """
        if feature.encoder is None:
            return from_bytes(values.rename(feature.source), feature.size)
        return self._of_texts(feature, values)

    def _of_texts(self, feature: VectorFeature, texts: pl.Series) -> Float32s:
        places = position(self.path, feature.name, keys(texts))
        vectors = open_distinct(self.path, feature.name)[places, :-1]
        new = np.flatnonzero(places == 0)
        if len(new):
            encoder = self.encoder(feature)
            vectors[new] = encoder.encode(texts.gather(new).to_list())
        return vectors

    def encoder(self, feature: VectorFeature) -> TextEncoder:
        """Return the encoder of a feature, the very version that made its vectors.

        Raises:
            ConfigError: another one is installed, or none.
        """
        assert feature.encoder is not None, "only texts have one"
        if feature.encoder not in self._encoders:
            self._encoders[feature.encoder] = open_same_encoder(feature.encoder)
        return self._encoders[feature.encoder]

    def check_encoders(self, schema: Schema) -> None:
        """Refuse to serve users whose texts could not be encoded.

        Raises:
            ConfigError: their encoder is not installed, or another version of it.
        """
        for feature in schema.vectors_of(Side.USER):
            if feature.encoder is not None:
                self.encoder(feature)
