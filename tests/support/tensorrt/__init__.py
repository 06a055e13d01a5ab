"""Doubles of eight TensorRT bindings on a simulated machine, and the real ones where they are."""
