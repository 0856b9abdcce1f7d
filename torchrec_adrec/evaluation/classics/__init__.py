"""Recommenders of the literature, and the protocols by which it compares them."""
