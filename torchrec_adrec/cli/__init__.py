"""The commands: each is short and calls its stage."""
