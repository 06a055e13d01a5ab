"""Bundles: everything that a device needs, as one folder or one file, verified down to the last byte.

The form is in :mod:`edge.bundle.manifest` and :mod:`edge.bundle.archive`. Opening a bundle imports no guest; making one
(:mod:`edge.bundle.create`) does.
"""

from edge.bundle.manifest import MANIFEST, SIGNATURE, BundleManifest
from edge.bundle.reading import Bundle, Source, open_bundle, verify
from edge.bundle.unpacking import pack, unpack

__all__ = ["MANIFEST", "SIGNATURE", "Bundle", "BundleManifest", "Source", "open_bundle", "pack", "unpack", "verify"]
