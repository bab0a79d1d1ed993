"""Finished clips: `prepare` checks them and makes them play, `storage` keeps them."""

from generation.media.sandbox import MediaFailure, UnplayableVideo, VideoFacts, prepare
from generation.media.storage import StoredClip, discard, new_names, remove, store

__all__ = [
    "MediaFailure",
    "StoredClip",
    "UnplayableVideo",
    "VideoFacts",
    "discard",
    "new_names",
    "prepare",
    "remove",
    "store",
]
