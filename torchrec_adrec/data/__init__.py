"""Raw logs to Parquet, and Parquet to batches."""
