"""Every address of the site, but for the event streams: `generation.sse` answers them before Django does."""

from django.contrib import admin
from django.urls import include, path

from videoplatform import health, metrics
from videoplatform.manifest import manifest

# Here and not when Django starts: a worker, a bot or a command needs none of the staff's pages, and starts sooner.
admin.autodiscover()

handler400 = "generation.api_errors.bad_request"
handler500 = "generation.api_errors.server_error"

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("metrics", metrics.metrics, name="metrics"),
    path("manifest.webmanifest", manifest, name="manifest"),
    path("v1/", include("generation.api_urls")),
    path("admin/", admin.site.urls),
    path("accounts/", include("allauth.urls")),
    path("telegram/", include("telegram_bot.urls")),
    path("", include("accounts.urls")),
    path("", include("generation.urls")),
]
