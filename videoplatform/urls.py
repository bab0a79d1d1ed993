"""The URLs of the site. `generation.sse` answers those of the event streams before Django sees them."""

from django.contrib import admin
from django.urls import include, path

from accounts.auth import lead_to_sign_in
from videoplatform import metrics

# Here and not when Django starts: a worker, a bot or a command needs none of the admin's pages, and starts sooner.
admin.autodiscover()

handler400 = "generation.api.errors.bad_request"
handler500 = "generation.api.errors.server_error"

urlpatterns = [
    path("healthz", metrics.healthz, name="healthz"),
    path("metrics", metrics.metrics, name="metrics"),
    path("manifest.webmanifest", metrics.manifest, name="manifest"),
    path("robots.txt", metrics.robots, name="robots"),
    path(".well-known/security.txt", metrics.security_txt, name="security_txt"),
    path("v1/", include("generation.api.views")),
    path("admin/login/", lead_to_sign_in),
    path("admin/", admin.site.urls),
    path("accounts/", include("allauth.urls")),
    path("telegram/", include("telegram_bot.urls")),
    path("", include("accounts.urls")),
    path("", include("generation.web.urls")),
]
