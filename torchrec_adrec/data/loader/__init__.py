"""From Parquet to batches: the same rows in the same order on any ranks."""
