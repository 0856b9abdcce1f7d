"""What every stage needs of its process: memory, threads, ranks, logs, files."""
