"""A whole run on one machine, and what it says of itself at the end."""
