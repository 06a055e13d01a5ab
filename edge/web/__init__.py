"""A run in a browser, and for Prometheus: read-only pages, on loopback unless an address and a token say otherwise."""
