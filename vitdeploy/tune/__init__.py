"""The fastest plan within a budget of accuracy, size and latency, from measurements on this device."""
