"""CUDA, through PyCUDA: :mod:`.driver` alone imports it, and everybody else works with the Protocols of :mod:`.base`.

One session has one :class:`~edge.backends.cuda.base.Device`: the GPU's primary context (TensorRT, through the CUDA
runtime, uses the same one) and one stream. Memory, events and graphs belong to it. PyCUDA keeps a stack of contexts per
thread and aborts the process when one is left on it at exit, so nothing is pushed outside of ``device.active()``.

Nothing in here was tried on a Jetson; what was tried on a discrete GPU is in ``tests/cuda``.
"""
