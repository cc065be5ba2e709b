"""PyTorch to an optimised ONNX graph."""
