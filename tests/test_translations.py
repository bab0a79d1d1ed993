"""Nothing is left in English: every word of the pages goes through a catalog, and every catalog is whole.

No gettext is needed for these tests; `make messages` needs it.
"""

import re
import tokenize
from collections.abc import Iterable
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_javascript, extract_python
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from django.template.base import DebugLexer, TokenType
from django.utils.translation.template import templatize

SITE = Path(__file__).resolve().parent.parent
CATALOGS = sorted((SITE / "locale").glob("*/LC_MESSAGES/*.po"))
# The admin is in English (accounts/languages.py).
TEMPLATES = [
    path for path in sorted(SITE.glob("templates/**/*.html")) if not {"admin", "unfold"} & {*path.parts}
]
APPS = ("accounts", "generation", "telegram_bot", "videoplatform")
KEYWORDS = {
    "gettext": None,
    "gettext_lazy": None,
    "gettext_noop": None,
    "_": None,
    "ngettext": (1, 2),
    "ngettext_lazy": (1, 2),
    "pgettext": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
}
# Names, and words of programs.
SAME_EVERYWHERE = {"Video platform", "API", "Telegram", "JSON", "UTC"}
READ_ATTRIBUTES = {"alt", "aria-label", "placeholder", "title"}


def catalog(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale=path.parent.parent.name)


@pytest.fixture(params=CATALOGS, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def po(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_catalogs():
    assert [path.name for path in CATALOGS] == ["django.po", "djangojs.po"]


def test_every_message_is_translated(po):
    left = [message.id for message in catalog(po) if message.id and not whole(message.string)]
    fuzzy = [message.id for message in catalog(po) if message.id and message.fuzzy]
    assert not left, f"not translated: {left}"
    assert not fuzzy, f"guessed by gettext, to be looked at: {fuzzy}"


def whole(string: str | tuple[str, ...]) -> bool:
    return all(string) if isinstance(string, tuple) else bool(string)


def test_translations_have_the_same_gaps_to_fill(po):
    wrong = [(message.id, str(error)) for message, errors in catalog(po).check() for error in errors]
    assert not wrong


def test_compiled_catalogs_are_up_to_date(po):
    with po.with_suffix(".mo").open("rb") as file:
        compiled = by_context(read_mo(file))
    assert compiled == by_context(catalog(po)), "run `make messages`"


def by_context(messages: Iterable[Message]) -> dict[tuple[str | None, str], tuple[str, ...]]:
    found = {}
    for each in messages:
        # Of compiled messages Babel gives the context in bytes.
        context = each.context.decode() if isinstance(each.context, bytes) else each.context
        if each.id:
            found[context, key(each.id)] = forms(each.string)
    return found


def forms(string: str | tuple[str, ...]) -> tuple[str, ...]:
    return (string,) if isinstance(string, str) else tuple(string)


def test_every_message_of_the_code_is_in_the_catalog():
    known = {key(message.id) for message in catalog(SITE / "locale/ru/LC_MESSAGES/django.po")}
    assert not sorted(set(in_python()) - known), "run `make messages` and translate"
    assert not sorted(set(in_templates()) - known), "run `make messages` and translate"


def test_every_message_of_the_scripts_is_in_the_catalog():
    known = {key(message.id) for message in catalog(SITE / "locale/ru/LC_MESSAGES/djangojs.po")}
    said = set()
    for path in SITE.glob("videoplatform/static/*.js"):
        said |= set(messages(extract_javascript(BytesIO(path.read_bytes()), KEYWORDS, [], {})))
    assert not sorted(said - known), "run `make messages` and translate"


def key(message_id: object) -> str:
    return str(message_id[0] if isinstance(message_id, tuple | list) else message_id)


def messages(extracted) -> list[str]:
    """The msgids of Babel's extractors: of plurals the singular."""
    found = []
    for _, function, words, _ in extracted:
        words = words if isinstance(words, tuple) else (words,)
        words = words[1:] if "pgettext" in function else words
        if words and isinstance(words[0], str):
            found.append(words[0])
    return found


def in_python() -> list[str]:
    found = []
    for app in APPS:
        for path in (SITE / app).rglob("*.py"):
            found += messages(extract_python(BytesIO(path.read_bytes()), KEYWORDS, [], {}))
    return found


def in_templates() -> list[str]:
    """Django's own way of making a template readable for gettext, then Babel in the place of gettext."""
    found = []
    for path in [*TEMPLATES, *SITE.glob("templates/**/*.txt")]:
        readable = templatize(path.read_text(), origin=str(path))
        for start in re.finditer(r"\b(?:n?p?gettext|_)\(", readable):
            call = first_call(readable[start.start() :])
            found += messages(extract_python(BytesIO(call.encode()), KEYWORDS, [], {"encoding": "utf-8"}))
    return found


def first_call(source: str) -> str:
    """Up to the bracket that closes the first one; what follows, HTML with every letter replaced, is no Python."""
    depth, parts = 0, []
    for token in tokenize.generate_tokens(StringIO(source).readline):
        parts.append(token.string)
        depth += {"(": 1, ")": -1}.get(token.string, 0)
        if token.string == ")" and depth == 0:
            return "".join(parts)
    raise AssertionError(f"a call without an end: {source[:80]}")


class Words(HTMLParser):
    """Collects the texts and labels of HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag, attrs):
        self._silent += tag in ("script", "style", "code", "pre")
        self.found += [value for name, value in attrs if name in READ_ATTRIBUTES and value]

    def handle_endtag(self, tag):
        self._silent -= tag in ("script", "style", "code", "pre")

    def handle_data(self, data):
        if not self._silent:
            self.found.append(data)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(SITE / "templates")))
def test_every_word_of_a_template_goes_through_a_catalog(path):
    reader = Words()
    reader.feed(without_translations(path.read_text()))
    plain = [words.strip(" ·\n") for words in reader.found]
    left = [words for words in plain if re.search(r"[^\W\d_]{2}", words) and words not in SAME_EVERYWHERE]
    assert not left


def without_translations(source: str) -> str:
    """The template's own text: without tags, what is between blocktranslate tags, and the one block of class names."""
    source = re.sub(r"{% block main_class %}.*?{% endblock %}", "", source)
    kept, inside = [], False
    for token in DebugLexer(source).tokenize():
        if token.token_type == TokenType.BLOCK and token.contents.split()[0] in (
            "blocktranslate",
            "blocktrans",
        ):
            inside = True
        elif token.token_type == TokenType.BLOCK and token.contents in ("endblocktranslate", "endblocktrans"):
            inside = False
        elif token.token_type == TokenType.TEXT and not inside:
            kept.append(token.contents)
    return "".join(kept)
