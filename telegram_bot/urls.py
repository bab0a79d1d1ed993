"""Pages for people on Telegram, and the webhook."""

from django.urls import path

from telegram_bot import views
from telegram_bot.receiving import updates

urlpatterns = [
    path("connect/", views.connect, name="telegram_connect"),
    path("connect/state/<str:shown>/", views.connect_state, name="telegram_connect_state"),
    path("connect/<int:request_id>/", views.confirm, name="telegram_confirm"),
    path("disconnect/", views.disconnect, name="telegram_disconnect"),
    path("link/<str:token>/", views.link, name="telegram_link"),
    path("login/<str:token>/", views.login, name="telegram_login"),
    path("video/<str:signed>/", views.video, name="telegram_video"),
    path("video/<str:signed>/file.mp4", views.video_file, name="telegram_video_file"),
    path("webhook", updates.receive, name="telegram_webhook"),
]
