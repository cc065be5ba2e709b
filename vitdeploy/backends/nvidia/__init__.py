"""What the backends for NVIDIA's GPUs share: the driver, the builder, engines and their sessions."""
