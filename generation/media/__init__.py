"""Finished clips: checking that they play, making them play, posters, and where they are kept."""

from generation.media.sandbox import (
    MediaFailure,
    MediaLimits,
    UnplayableVideo,
    VideoFacts,
    make_playable,
    make_poster,
    prepare,
    probe,
)
from generation.media.storage import new_names, remove, store

__all__ = [
    "MediaFailure",
    "MediaLimits",
    "UnplayableVideo",
    "VideoFacts",
    "make_playable",
    "make_poster",
    "new_names",
    "prepare",
    "probe",
    "remove",
    "store",
]
