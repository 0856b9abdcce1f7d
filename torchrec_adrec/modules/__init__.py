"""Modules: the parts that models are made of."""
