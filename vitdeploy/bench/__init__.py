"""Latency: every sample kept, the statistics over them, and the machine they were taken on."""
