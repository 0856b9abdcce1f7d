"""All settings of a run, typed: an unknown key is an error."""
