"""Losses over the global batch, one file a family; each function names its paper."""
