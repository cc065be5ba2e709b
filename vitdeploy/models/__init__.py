"""Architectures, one paper a file, and the weights that they load."""

from vitdeploy.verb import make_verb

make_verb(__name__)
