"""The verb ``ship``: a bundle travels to a device, is verified there, and becomes ``current`` in one step.

:mod:`edge.ship.sending` ships one bundle to one device; :mod:`edge.ship.upkeep` looks, goes back and clears up;
:mod:`edge.ship.fetching` brings what devices found out home. docs/shipping.md has the layout on the device and what is
promised.
"""

from edge.ship.sending import Canary, Outcome, Settings, ship

__all__ = ["Canary", "Outcome", "Settings", "ship"]
