"""Many runs of one configuration in one table, and a search for the best settings."""
