"""The stages of a run and their folders: what was made from what."""
