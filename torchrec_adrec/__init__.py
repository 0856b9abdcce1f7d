"""Ad recommendation on sharded TorchRec embeddings, end to end."""

__version__ = "0.1.0"
