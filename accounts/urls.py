"""The site's pages about credits and keys. Signing up and in is allauth's."""

from django.urls import path

from accounts import views

urlpatterns = [
    path("credits/", views.credit_history, name="credits"),
    path("api-keys/", views.api_keys_page, name="api_keys"),
    path("api-keys/<uuid:key_id>/revoke/", views.revoke_api_key, name="api_key_revoke"),
]
