"""edge: from an ONNX classifier to a measured, shipped, running INT8 engine on NVIDIA Jetson.

The command line is :mod:`edge.cli`; the verbs behind it are plain functions in
``edge.calibrate``, ``edge.build``, ``edge.loop`` and ``edge.evaluate``.
Importing this package imports none of the guests (see :func:`edge.errors.require`).
"""

__version__ = "0.1.0"
