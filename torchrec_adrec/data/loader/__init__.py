"""Reads Parquet into batches: the same rows in the same order on any ranks."""
