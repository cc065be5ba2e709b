"""Lower precision, expressed in the graph."""
