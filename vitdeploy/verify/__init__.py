"""Proof that an artifact computes what eager PyTorch computes: metrics, bounds and the verdict."""
