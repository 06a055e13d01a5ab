"""Bundles in an OCI registry: one layer per file, by digest, so that what is there already is not sent again.

The artifact has ``bundle.json`` as its config, every file as a layer with its path as title, and the signature, if any,
as one more. The client library is `oras` (oras-py): it knows how registries ask for credentials. It checks no digest
of what it downloads and reads whole files into memory, so blobs and manifests are moved here, in pieces, checked.
"""

from edge.registry.pulling import Remote, pull
from edge.registry.pushing import Pushed, push
from edge.registry.reference import Reference, parse

__all__ = ["Pushed", "Reference", "Remote", "parse", "pull", "push"]
