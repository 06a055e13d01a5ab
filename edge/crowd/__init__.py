"""Crews of many: processes of this machine, and Dask workers on any machine (see :class:`edge.observe.Crew`)."""
