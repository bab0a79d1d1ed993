"""`/healthz`: whether this process can serve, and whether the others seem to be at work."""

import logging

from django.db import DatabaseError, InterfaceError
from django.db.models import Max
from django.db.models.functions import Now
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache

from generation.database import RETRY_AFTER
from generation.models import GpuNode

logger = logging.getLogger(__name__)


@never_cache
def healthz(request: HttpRequest) -> JsonResponse:
    """200 when the database answers, else 503. When a GPU node was last heard of says whether the reconciler runs."""
    try:
        heard = GpuNode.objects.aggregate(ago=Now() - Max("last_seen_at"))["ago"]
    except (DatabaseError, InterfaceError) as error:
        logger.error("the database does not answer: %s", error)
        return JsonResponse({"status": "failed", "database": "failed"}, status=503, headers=RETRY_AFTER)
    age = None if heard is None else round(heard.total_seconds(), 1)
    return JsonResponse({"status": "ok", "database": "ok", "node_heard_seconds_ago": age})
