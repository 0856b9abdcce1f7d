"""A world whose law is known, and the log that it writes."""
