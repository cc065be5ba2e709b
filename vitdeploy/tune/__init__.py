"""The fastest plan within a budget of accuracy, size and latency, from measurements on this device."""

from vitdeploy.verb import make_verb

make_verb(__name__)
