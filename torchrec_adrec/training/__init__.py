"""The parts of the training loop; each can be read alone."""
