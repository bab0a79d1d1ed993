"""The web process: Django, with the live event streams in front of it."""

import os

import django

# Settings give a connection pool to this very process and to none that it starts or that forks.
os.environ["VIDEOPLATFORM_WEB_PID"] = str(os.getpid())
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "videoplatform.settings")

django.setup(set_prefix=False)

# Load all pages now, and not during the first request.
from django.conf import settings  # noqa: E402

import videoplatform.urls  # noqa: E402, F401  (models can be imported only after Django is set up)
from generation.api.errors import App  # noqa: E402
from generation.sse.app import EventStreams  # noqa: E402
from videoplatform.hardening import AccessLog, BodyLimit, FinishCancelled, PatientHandler  # noqa: E402


def logged(app: App) -> App:
    return AccessLog(app) if settings.ACCESS_LOG else app


streams = EventStreams(BodyLimit(FinishCancelled(PatientHandler())))
application = logged(streams)
