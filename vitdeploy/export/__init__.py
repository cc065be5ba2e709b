"""PyTorch to an optimised ONNX graph."""

from vitdeploy.verb import make_verb

make_verb(__name__)
