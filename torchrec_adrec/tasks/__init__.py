"""Model and loss together: what is trained, and what a finished run restores."""
