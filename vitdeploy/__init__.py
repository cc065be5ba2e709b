"""vitdeploy: vision transformers from PyTorch to the devices that run them, proven equal."""

__version__ = "0.1.0"
