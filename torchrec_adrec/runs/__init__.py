"""Stages of a run and their folders: each records what it was made from."""
