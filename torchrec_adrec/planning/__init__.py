"""Planning: what training would need on a cluster that is only described."""
