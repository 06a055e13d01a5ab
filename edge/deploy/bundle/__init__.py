"""Bundles: everything that a device needs, in one folder or file, with every byte verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.deploy.bundle.closed import check_models
    from edge.deploy.bundle.deployed import Deployed, check_target, mismatch
    from edge.deploy.bundle.manifest import (
        MANIFEST,
        MAX_MANIFEST_BYTES,
        PROFILE,
        SIGNATURE,
        BundleManifest,
        decode_manifest,
        name_problem,
        printable_name,
    )
    from edge.deploy.bundle.reader import MAX_SIGNATURE_BYTES, Bundle, BundleSource, Meter, open_bundle, verify_bundle
    from edge.deploy.bundle.unpacking import pack_bundle, unpack_bundle
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "closed": ["check_models"],
            "deployed": ["Deployed", "check_target", "mismatch"],
            "manifest": [
                "BundleManifest",
                "MANIFEST",
                "MAX_MANIFEST_BYTES",
                "PROFILE",
                "SIGNATURE",
                "decode_manifest",
                "name_problem",
                "printable_name",
            ],
            "reader": ["Bundle", "BundleSource", "MAX_SIGNATURE_BYTES", "Meter", "open_bundle", "verify_bundle"],
            "unpacking": ["pack_bundle", "unpack_bundle"],
        },
    )

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "MAX_SIGNATURE_BYTES",
    "PROFILE",
    "SIGNATURE",
    "Bundle",
    "BundleManifest",
    "BundleSource",
    "Deployed",
    "Meter",
    "check_models",
    "check_target",
    "creation",
    "decode_manifest",
    "deployed",
    "golden",
    "mismatch",
    "name_problem",
    "open_bundle",
    "pack_bundle",
    "printable_name",
    "signature",
    "unpack_bundle",
    "verify_bundle",
]
