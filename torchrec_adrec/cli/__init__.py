"""Commands of `adrec`: each is short and calls its stage."""
