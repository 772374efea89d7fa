"""Faults against real workers while data flows; after each, every cell equals a recomputation from the input."""
