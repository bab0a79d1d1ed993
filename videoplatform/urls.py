"""The URLs of the site. `generation.sse` answers those of the event streams before Django sees them."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.urls import include, path, re_path, reverse

from accounts.auth import lead_to_sign_in
from videoplatform import metrics

# Here and not when Django starts: a worker, a bot or a command needs none of the admin's pages, and starts sooner.
admin.autodiscover()

handler400 = "generation.api.errors.bad_request"
handler500 = "generation.api.errors.server_error"

# Pages of the admin whose models have new names; bookmarks and links in old messages still work.
RENAMED = {
    "accounts/staffact": "accounts/auditevent",
    "generation/refundbatch": "generation/bulkrefund",
    "telegram_bot/notice": "telegram_bot/chatnotice",
}


def renamed(request: HttpRequest, page: str, rest: str) -> HttpResponse:
    query = f"?{request.GET.urlencode()}" if request.GET else ""
    to = f"{reverse('admin:index')}{RENAMED[page]}/{rest}{query}"
    return HttpResponsePermanentRedirect(to, preserve_request=True)


urlpatterns = [
    path("healthz", metrics.healthz, name="healthz"),
    path("metrics", metrics.metrics, name="metrics"),
    path("manifest.webmanifest", metrics.manifest, name="manifest"),
    path("robots.txt", metrics.robots, name="robots"),
    path(".well-known/security.txt", metrics.security_txt, name="security_txt"),
    path("v1/", include("generation.api.views")),
    re_path(rf"^admin/(?P<page>{'|'.join(RENAMED)})/(?P<rest>.*)$", admin.site.admin_view(renamed)),
    path("admin/login/", lead_to_sign_in),
    path("admin/", admin.site.urls),
    path("accounts/", include("allauth.urls")),
    path("telegram/", include("telegram_bot.urls")),
    path("", include("accounts.urls")),
    path("", include("generation.web.urls")),
]
