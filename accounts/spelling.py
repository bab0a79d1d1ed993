"""Texts by how they look: letters in disguise, names that pass for others', passwords that hide nothing."""

import re
import unicodedata
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from confusable_homoglyphs.categories import unique_aliases
from confusable_homoglyphs.confusables import confusables_data
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from accounts.models import User

# Letters and symbols by category, yet nothing to see: fillers of Hangul, and Braille without dots.
BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# Digits and signs that stand for letters, and letters that look alike in most typefaces.
STAND_INS = str.maketrans("013457@$!|l", "oieastasiii")
SIGN_IN_A_WORD = re.compile(r"(?<=\w)[@$!|](?=\w)")
WORD = re.compile(r"[^\W_]+")
SINGLE_LETTERS = re.compile(r"(?:(?<!\w)\w\W+){2,}\w(?!\w)")
RUN = re.compile(r"(.)\1{2,}")
# Words that users take for the service itself, and beginnings of the names that the service makes.
STAFF_WORDS = (
    "admin administrator root support staff moderator mod operator system helpdesk security official webmaster "
    "postmaster hostmaster billing finance owner team service bot"
)
OUR_PREFIXES = ("tg_", "deleted_")
TOGETHER = {"HAN", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"}
FEWEST_CHARACTERS = 4


def unmasked(text: str) -> str:
    """Fold away looks: case, marks, invisible characters, compatibility forms, and letters of other scripts."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(_letter(character) for character in folded)


@lru_cache(maxsize=10_000)
def _letter(character: str) -> str:
    if character.isascii():
        return character
    if unicodedata.category(character) in ("Cf", "Mn", "Me") or character in BLANKS:
        return ""
    # 🅱 and 🇧 are letters by name only.
    if named := re.search(r"(?:LATIN|SYMBOL) .*LETTER ([A-Z])$", unicodedata.name(character, "")):
        return named[1].lower()
    looks = (each["c"].lower() for each in confusables_data.get(character, ()))
    return next((look for look in looks if len(look) == 1 and "a" <= look <= "z"), character)


def skeletons(text: str) -> set[str]:
    """Return the words of a text as they look, one space around each; runs of a letter may be one or two letters.

    Two texts that look alike have one in common.
    """
    plain = SIGN_IN_A_WORD.sub(lambda sign: sign[0].translate(STAND_INS), unmasked(text))
    words = " ".join(WORD.findall(plain)).translate(STAND_INS)
    return {f" {RUN.sub(letters, words)} " for letters in (r"\1", r"\1\1")}


def spelt_out(text: str) -> str:
    """Join letters that stand apart (b o m b, b.o.m.b), which no skeleton holds as a word; other words are left out."""
    runs = SINGLE_LETTERS.findall(unmasked(text).replace("_", " "))
    return " ".join("".join(WORD.findall(run)) for run in runs).translate(STAND_INS)


def check_name(name: str) -> None:
    """Check a user name that a person chooses. Raises ValidationError."""
    if "@" in name:
        raise ValidationError(_("A user name is no email address: people sign in with either."))
    scripts = unique_aliases(name) - {"COMMON", "INHERITED"}
    if len(scripts) > 1 and not scripts <= TOGETHER:
        raise ValidationError(_("Please use letters of one alphabet only."))
    site = (urlsplit(settings.SITE_URL).hostname or "").split(".")
    words = {word for word in site[:-1] if len(word) > 3}
    ours = " ".join(skeleton for each in (STAFF_WORDS, *words) for skeleton in skeletons(each))
    staff = User.objects.filter(is_staff=True).values_list("username", flat=True)
    parts = {part for skeleton in skeletons(re.sub(r"[\d_.+-]+$", "", name)) for part in skeleton.split()}
    looks = skeletons(name)
    if (
        name.lower().startswith(OUR_PREFIXES)
        or any(f" {part} " in ours for part in parts)
        or any(looks & skeletons(taken) for taken in staff)
    ):
        raise ValidationError(_("This name could be taken for the service's own. Please choose another one."))


class NotTrivial:
    """Validator: a password has a few different characters, and more in it than the user's name."""

    def validate(self, password: str, user: Any = None) -> None:
        name = str(getattr(user, "username", "") or "").lower()
        rest = password.strip().lower()
        if len(name) >= FEWEST_CHARACTERS - 1:
            rest = rest.replace(name, "")
        if len(set(rest)) < FEWEST_CHARACTERS:
            raise ValidationError(self.get_help_text())

    def get_help_text(self) -> str:
        return _("Your password needs at least four different characters that are not your name.")
