"""Models: towers and rankers. None of them knows that it will be sharded."""
