"""From trained towers to exported vectors and a published index."""
