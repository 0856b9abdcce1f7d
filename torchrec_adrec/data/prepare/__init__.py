"""From raw columns to ids, splits and Parquet, fitted on training rows only."""
