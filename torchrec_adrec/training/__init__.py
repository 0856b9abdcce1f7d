"""The parts of the training loop, each of which could be read alone."""
