"""Latency: every sample kept, the statistics over them, and the machine they were taken on."""

from vitdeploy.verb import make_verb

make_verb(__name__)
