"""Finished clips: `prepare` checks them and makes them play."""

from generation.media.sandbox import MediaFailure, UnplayableVideo, VideoFacts, prepare

__all__ = ["MediaFailure", "UnplayableVideo", "VideoFacts", "prepare"]
