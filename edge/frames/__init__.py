"""Pictures from a folder, a list, a CSV or TFRecord shards, and the one place that decodes them."""

from __future__ import annotations

from edge.frames.decoding import decode
from edge.frames.lists import natural, render_list
from edge.frames.pictures import Picture, Pictures
from edge.frames.sources import open_pictures, shards_of

__all__ = ["Picture", "Pictures", "decode", "natural", "open_pictures", "render_list", "shards_of"]
