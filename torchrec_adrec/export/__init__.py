"""From trained towers to published vectors and index."""
