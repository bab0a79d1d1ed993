"""The web process: Django, with the live event streams in front of it."""

import os
from pathlib import Path

from django.core.asgi import get_asgi_application
from environs import Env

# What .env says comes first; read here already because settings have another default for the processes that fork.
Env().read_env(str(Path(__file__).resolve().parent.parent / ".env"), recurse=False)
os.environ.setdefault("DATABASE_POOL_SIZE", "10")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "videoplatform.settings")

django = get_asgi_application()

from generation.sse import EventStreams  # noqa: E402  (models can be imported only after Django is set up)
from videoplatform.body_limit import BodyLimit  # noqa: E402

application = EventStreams(BodyLimit(django))
