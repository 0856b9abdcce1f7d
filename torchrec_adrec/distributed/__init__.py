"""Processes, sharding, optimizers and checkpoints."""
