"""Live updates over HTTP: `GET /events` for the site's own pages, `GET /v1/videos/{id}/events` for the API.

A small ASGI app in front of Django. A stream that waits holds neither a thread nor a database connection; as an
ordinary view it would hold both. One subscription to the hub a process is dealt out by user, so that a slow client
delays nobody and misses nothing but states that were overtaken.

`app` speaks ASGI, `streams` are the two kinds of stream, `board` deals events out to them, `reading` asks the database,
`wire` is the format.
"""

from generation.sse.app import EventStreams
from generation.sse.streams import MEDIA_TYPE, Inbox, frame, video_frame

__all__ = ["MEDIA_TYPE", "EventStreams", "Inbox", "frame", "video_frame"]
