"""Proves that a served score is the trained score: the same requests in every way."""
