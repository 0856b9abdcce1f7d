"""Which features of the data the towers' vectors read."""

from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema, Side


def reads(config: RetrievalConfig, name: str) -> bool:
    """Whether the vectors read a feature."""
    return config.features is None or name in config.features


def ids_read(schema: Schema, side: Side, config: RetrievalConfig) -> Schema:
    """Return the schema with those ids alone that the vectors read.

    Args:
        schema: of the data.
        side: which must have a feature that is read.
        config: names the features.

    Raises:
        ConfigError: it names what is no feature, or nothing of this side.
    """
    if config.features is None:
        return schema
    known = {f.name for f in (*schema.dense, *schema.bags, *schema.vectors)}
    lost = sorted(set(config.features) - known)
    if lost:
        raise ConfigError(
            f"retrieval.features: {', '.join(lost)} are no features of the data, which"
            f" has {', '.join(sorted(known))}"
        )
    of_side = (*schema.dense_of(side), *schema.fields_of(side))
    if not any(reads(config, f.name) for f in of_side):
        raise ConfigError(
            f"retrieval.features {list(config.features)} names no feature of the"
            f" {side}, expected one of {', '.join(f.name for f in of_side)}"
        )
    return schema.model_copy(
        update={
            "sparse": tuple(f for f in schema.sparse if reads(config, f.name)),
            "sequences": tuple(f for f in schema.sequences if reads(config, f.name)),
        }
    )


def encoded_history(schema: Schema, side: Side, config: RetrievalConfig) -> str | None:
    """Return the key of one side whose ids are looked up one by one, not in bags.

    Raises:
        ConfigError: there is no history that could be read in its order.
    """
    if config.history.encoder == "mean":
        return None
    key = schema.items_of(side)
    if key not in [feature.name for feature in schema.bags_of(side)]:
        raise ConfigError(
            f"retrieval.history.encoder {config.history.encoder} reads the ids of the"
            " ads in their order, and no list of the users has those: name the ads'"
            " column in the data (`history: {of: item}`), and the history and that"
            " column in `retrieval.features` where that is set; or set mean"
        )
    return key
