"""The stage that turns raw columns into ids, splits and Parquet files.

Everything that is fitted is fitted on the training rows alone.
"""
