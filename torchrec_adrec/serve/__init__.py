"""One request: user features -> candidates -> ranked ads."""
