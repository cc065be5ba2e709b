"""Architectures, one paper a file, and the weights that they load."""
