"""`adrec run`: all stages on one machine, what it shows, and the report at its end."""
