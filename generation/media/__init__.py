"""Finished clips: `prepare` checks them and makes them play, `storage` keeps them."""

from generation.media.sandbox import MediaFailure, UnplayableVideo, VideoFacts, prepare
from generation.media.storage import new_names, remove, store

__all__ = [
    "MediaFailure",
    "UnplayableVideo",
    "VideoFacts",
    "new_names",
    "prepare",
    "remove",
    "store",
]
