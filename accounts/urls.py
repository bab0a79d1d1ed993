"""Addresses of the account, its credits and API keys, and of the choice of language. Signing in is allauth's."""

from django.urls import path
from django.views.generic import TemplateView

from accounts import views

urlpatterns = [
    path("about/", TemplateView.as_view(template_name="accounts/about.html"), name="about"),
    path("language/", views.choose_language, name="choose_language"),
    path("words/<str:language>-<str:version>.js", views.script_catalog, name="words"),
    path("account/", views.account, name="account"),
    path("account/mails/", views.choose_mails, name="choose_mails"),
    path("account/export/", views.export_data, name="export"),
    path("account/delete/", views.close_account, name="close_account"),
    path("notices/<int:notice_id>/close/", views.close_notice, name="close_notice"),
    path("credits/", views.credit_history, name="credits"),
    path("api-keys/", views.api_keys_page, name="api_keys"),
    path("api-keys/<uuid:key_id>/revoke/", views.revoke_api_key, name="api_key_revoke"),
]
