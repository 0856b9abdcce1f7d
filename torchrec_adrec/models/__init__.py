"""Models; none of them knows that it will be sharded."""
