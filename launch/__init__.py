"""Launching of stages on many processes, by torchx and torchrun."""
