"""How stages are launched on many processes."""
