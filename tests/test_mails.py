"""Mails when a video is ready: by choice, once, in the reader's language, and again when the mail server was away."""

import re
import socketserver
import threading
from html import unescape

import pytest
from allauth.account.models import EmailAddress
from asgiref.sync import async_to_sync
from django.core import mail
from django.db.models.functions import Now
from django.test import Client

from accounts import privacy
from accounts.models import User
from generation.jobs import lifecycle, submission
from generation.mails import MailChannel
from generation.models import ReadyMail
from generation.outbox import TryLater
from tests.processes import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def browser(mailed):
    client = Client()
    client.force_login(mailed)
    return client


@pytest.fixture
def submit(user, settings):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    return lambda prompt="A red fox", source="web": submission.submit(user=user, prompt=prompt, source=source)


def text(response):
    words = re.sub(r"<[^>]+>", " ", response.content.decode())
    return re.sub(r"\s+", " ", unescape(words))


@pytest.fixture
def mailed(user, settings):
    """A user with a confirmed address, whom the site can write to."""
    settings.EMAIL_HOST = "mail.example.org"
    EmailAddress.objects.create(user=user, email="ada@example.org", verified=True, primary=True)
    return user


def send_mails():
    """Do what the reconciler does with the mails that are due."""
    for row in ReadyMail.due():
        async_to_sync(MailChannel().deliver)(row)


def test_a_mail_tells_of_a_ready_video_by_choice(browser, mailed, submit, finish_job):
    finish_job(submit("not wanted yet"))
    page = browser.post("/account/mails/", {"when_ready": "on"}, follow=True)
    assert "On, for videos that you order here" in text(page)
    job = finish_job(submit("A red\nfox"))
    send_mails()
    send_mails()
    [message] = mail.outbox
    assert (message.to, message.subject) == (["ada@example.org"], "Your video is ready: A red fox")
    assert f"http://localhost:8000/videos/{job.public_id}/" in message.body
    assert "http://localhost:8000/account/" in message.body
    browser.post("/account/mails/", {"when_ready": "off"})
    finish_job(submit("not wanted any more"))
    assert not ReadyMail.objects.exists()


def test_a_mail_tells_of_a_failure_too_in_its_readers_language(browser, mailed, submit, start_job):
    browser.post("/language/", {"language": "ru", "next": "/"})
    browser.post("/account/mails/", {"when_ready": "on"})
    attempt = start_job(submit())
    ids = {"attempt_id": attempt.pk, "token": attempt.pk}
    lifecycle.attempt_failed(**ids, code="x", message="It broke.", error="")
    send_mails()
    [message] = mail.outbox
    assert message.subject == "Видео не получилось: A red fox"
    assert "Кредиты не списаны." in message.body


def test_no_mail_tells_of_what_one_did_oneself_or_ordered_elsewhere(mailed, submit, finish_job):
    User.objects.update(mail_when_ready=True)
    lifecycle.cancel(job=submit())
    finish_job(submit("by a program", source="api"))
    assert not ReadyMail.objects.exists()


def test_a_mail_needs_an_address_that_is_confirmed(browser, mailed, submit, finish_job):
    EmailAddress.objects.update(verified=False)
    page = browser.post("/account/mails/", {"when_ready": "on"}, follow=True)
    assert page.redirect_chain == [("/accounts/email/", 302)]
    assert "confirm it first" in text(page)
    assert not User.objects.get(pk=mailed.pk).mail_when_ready


def test_a_mail_server_that_is_away_is_asked_again(mailed, settings, submit, finish_job):
    User.objects.update(mail_when_ready=True)
    finish_job(submit())
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    with pytest.raises(TryLater):
        send_mails()
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert not ReadyMail.due().exists(), "another process leaves it alone while it is being sent"
    ReadyMail.objects.update(next_attempt_at=Now())
    send_mails()
    assert len(mail.outbox) == 1


def test_nothing_is_mailed_to_a_closed_account(mailed, submit, finish_job):
    User.objects.update(mail_when_ready=True)
    finish_job(submit())
    privacy.close(user=User.objects.get(pk=mailed.pk))
    send_mails()
    assert not mail.outbox
    assert not ReadyMail.objects.exists()


class OneMail(socketserver.StreamRequestHandler):
    """Speaks as much SMTP as it takes to be given a mail, and keeps it."""

    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        for line in self.rfile:
            command = line[:4].upper().strip()
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.server.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
            self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
            if command == b"QUIT":
                return


def test_the_reconciler_sends_them(mailed, submit, finish_job, processes):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OneMail) as server:
        server.mails = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_address[1])
        User.objects.update(mail_when_ready=True)
        finish_job(submit())
        processes.start("run_reconciler", EMAIL_HOST="127.0.0.1", EMAIL_PORT=port, EMAIL_USE_TLS="false")
        wait_for(lambda: server.mails)
        wait_for(lambda: not ReadyMail.objects.exists())
        server.shutdown()
    assert len(server.mails) == 1
    assert "Your video is ready: A red fox" in server.mails[0]
