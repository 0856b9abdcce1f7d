"""One file per data set: raw files to frames of raw columns, and their schema."""
