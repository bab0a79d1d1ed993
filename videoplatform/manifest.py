"""What a phone needs to know to put the site among its apps."""

from django.http import HttpRequest, JsonResponse
from django.templatetags.static import static
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe


@require_safe
def manifest(request: HttpRequest) -> JsonResponse:
    icons = [
        {
            "src": static(f"icon-{size}.png"),
            "sizes": f"{size}x{size}",
            "type": "image/png",
            "purpose": purpose,
        }
        for size in (192, 512)
        for purpose in ("any", "maskable")
    ]
    facts = {
        "name": "Video platform",
        "short_name": _("Videos"),
        "description": _("Write a sentence, get a video. Credits are charged only for a clip that plays."),
        "start_url": reverse("dashboard"),
        "display": "standalone",
        "background_color": "#fafaf9",
        "theme_color": "#5244d6",
        "icons": icons,
    }
    return JsonResponse(facts, content_type="application/manifest+json")
