"""The process and its files: memory, threads, ranks, logging, versions."""
