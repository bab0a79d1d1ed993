"""Shared links: what they show, and that they can be revoked."""

import re
import threading
from html import unescape

import pytest
from django.db import connection
from django.test import Client

from accounts.models import User
from generation import sharing
from generation.errors import VideoNotReady
from generation.jobs import lifecycle, submission
from generation.models import SharedLink

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
PROMPT = 'A red fox & "snow"'


@pytest.fixture
def owner(make_user):
    return make_user("owner-of-it", email="owner@example.org")


@pytest.fixture
def owners_browser(owner):
    client = Client()
    client.force_login(owner)
    return client


@pytest.fixture
def job(owner, finish_job):
    job = submission.submit(user=owner, prompt=PROMPT, source="web", seed=4711, negative_prompt="rain")
    return finish_job(job)


def page_of(job):
    return f"/videos/{job.public_id}/"


def path_of(link):
    return f"/s/{link.token}/"


def test_a_shared_clip_is_watched_without_an_account(client, job, clip):
    path = path_of(sharing.share(job=job))
    page = client.get(path)
    assert page.status_code == 200
    assert "A red fox &amp; &quot;snow&quot;</h1>" in page.content.decode()
    part = client.get(f"{path}video.mp4", headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert b"".join(part) == clip.read_bytes()[100:200]
    assert client.get(f"{path}poster.jpg").headers["Content-Type"] == "image/jpeg"


def test_the_shared_page_shows_nothing_else_of_the_owner(client, job, owner):
    page = client.get(path_of(sharing.share(job=job))).content.decode()
    for secret in (owner.username, owner.email, job.id.hex, "4711", "rain", "credit", "Receipt", "Web"):
        assert secret not in page


def test_chats_get_what_they_unfurl_it_from(client, job, settings):
    settings.SITE_URL = "https://video.example.org"
    settings.ALLOWED_HOSTS = ["video.example.org"]
    path = path_of(sharing.share(job=job))
    html = client.get(path, headers={"Host": "video.example.org"}).content.decode()
    tags = {
        name: unescape(value) for name, value in re.findall(r'property="(og:[^"]+)" content="([^"]*)"', html)
    }
    base = f"https://video.example.org{path}"
    assert tags["og:type"] == "video.other"
    assert tags["og:title"] == tags["og:description"] == PROMPT
    assert tags["og:url"] == base
    assert tags["og:video"] == tags["og:video:secure_url"] == f"{base}video.mp4"
    assert tags["og:video:type"] == "video/mp4"
    assert tags["og:image"] == f"{base}poster.jpg"
    assert (tags["og:video:width"], tags["og:video:height"]) == ("96", "64")


def test_addresses_are_on_the_host_that_was_asked_when_it_is_not_the_sites_own(client, job):
    link = sharing.share(job=job)
    html = client.get(path_of(link), headers={"Host": "127.0.0.1:8123"}).content.decode()
    assert f'"http://127.0.0.1:8123{path_of(link)}video.mp4"' in html
    assert sharing.address(link) == f"http://localhost:8000{path_of(link)}"


def test_search_engines_and_caches_are_kept_out(client, job):
    path = path_of(sharing.share(job=job))
    page = client.get(path)
    assert '<meta name="robots" content="noindex' in page.content.decode()
    assert "no-store" in page.headers["Cache-Control"]
    for answer in (page, client.get(f"{path}video.mp4"), client.get(f"{path}poster.jpg")):
        assert "noindex" in answer.headers["X-Robots-Tag"]
    assert client.get(f"{path}video.mp4").headers["Cache-Control"] == "private, no-cache"


def test_a_revoked_link_is_gone_for_good_and_the_next_one_is_another(client, job):
    first = sharing.share(job=job)
    assert sharing.share(job=job) == first
    assert sharing.revoke(job=job)
    assert not sharing.revoke(job=job)
    for rest in ("", "video.mp4", "poster.jpg"):
        assert client.get(f"{path_of(first)}{rest}").status_code == 404
    second = sharing.share(job=job)
    assert second.token != first.token
    assert client.get(path_of(first)).status_code == 404
    assert client.get(path_of(second)).status_code == 200


def test_a_link_cannot_be_guessed(job):
    link = sharing.share(job=job)
    assert len(link.token) >= 22
    assert job.id.hex not in link.token


@pytest.mark.parametrize("token", ["x", "A" * 22, "A" * 65, "A" * 5000, "-", "_"])
def test_a_link_that_never_was_is_no_page(client, job, token):
    sharing.share(job=job)
    assert client.get(f"/s/{token}/").status_code == 404


def test_a_deleted_clip_is_not_shared_any_more(client, job):
    path = path_of(sharing.share(job=job))
    lifecycle.delete(job=job)
    assert client.get(path).status_code == 404
    with pytest.raises(VideoNotReady):
        sharing.share(job=job)


def test_a_banned_owner_shares_nothing(client, job, owner):
    path = path_of(sharing.share(job=job))
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert client.get(path).status_code == 404


def test_what_is_not_finished_cannot_be_shared(owner, owners_browser):
    waiting = submission.submit(user=owner, prompt="later", source="web")
    with pytest.raises(VideoNotReady):
        sharing.share(job=waiting)
    page = owners_browser.post(f"{page_of(waiting)}share/", follow=True)
    assert "This video is not ready." in page.content.decode()
    assert not SharedLink.objects.exists()


def test_the_owner_shares_and_stops_without_javascript(owners_browser, client, job):
    page = owners_browser.post(f"{page_of(job)}share/", follow=True)
    address = re.search(r'readonly value="http://testserver(/s/[^"]+)"', page.content.decode())[1]
    assert page.redirect_chain == [(f"{page_of(job)}#share", 302)]
    assert client.get(address).status_code == 200
    page = owners_browser.post(f"{page_of(job)}unshare/", follow=True)
    assert "/s/" not in page.content.decode()
    assert client.get(address).status_code == 404


def test_htmx_gets_the_box_alone(owners_browser, job):
    box = owners_browser.post(f"{page_of(job)}share/", headers=HTMX).content.decode()
    assert box.startswith('<section id="share"')
    assert "<html" not in box
    assert "/s/" in box
    assert "/s/" not in owners_browser.post(f"{page_of(job)}unshare/", headers=HTMX).content.decode()


def test_anothers_clip_cannot_be_shared(make_user, job):
    stranger = Client()
    stranger.force_login(make_user("bob"))
    for path in ("share/", "unshare/"):
        assert stranger.post(f"{page_of(job)}{path}").status_code == 404
    assert not SharedLink.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_requests_to_share_at_once_get_the_same_link(job):
    tokens, together = [], threading.Barrier(2)

    def share():
        together.wait(10)
        tokens.append(sharing.share(job=job).token)
        connection.close()

    threads = [threading.Thread(target=share) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(tokens) == 2
    assert len(set(tokens)) == 1
