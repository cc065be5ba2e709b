"""The ONNX graph in memory: load, save, run, count."""
