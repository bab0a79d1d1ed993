"""What must not be asked for: words and patterns that staff keep, held against every prompt by `admission`.

Patterns are RE2's, whose time is linear in the prompt whatever somebody writes as a pattern.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import re2

from generation.errors import PromptBlocked
from generation.models import BlockedPrompt

WORD = re.compile(r"\w+")
# Memory for one compiled pattern, in bytes.
MAX_MEMORY = 1 << 20


class BadPattern(ValueError):
    """RE2 does not take this pattern; the message says why."""


@dataclass(frozen=True)
class _Text:
    """A prompt as rules see it: `plain` for patterns, `words` with one space around each for words."""

    plain: str
    words: str


def check(prompt: str) -> None:
    """Raises PromptBlocked with the explanation of the first rule that the prompt is against."""
    if broken := matching(prompt):
        raise PromptBlocked(broken[0].explanation)


def matching(prompt: str) -> list[BlockedPrompt]:
    """Every enabled rule that the prompt is against."""
    rules = list(BlockedPrompt.objects.filter(enabled=True))
    text = _prepared(prompt) if rules else _Text("", "")
    return [rule for rule in rules if _is_against(text, rule)]


def compiled(pattern: str) -> "re2._Regexp[str]":
    """Raises BadPattern."""
    try:
        return _compiled(pattern)
    except re2.error as error:
        said = error.args[0] if error.args else "it is not understood"
        raise BadPattern(said.decode() if isinstance(said, bytes) else str(said)) from error


def normal(text: str) -> str:
    """So that looks do not matter: compatibility forms, case, and characters that nobody sees."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character) != "Cf")


def _is_against(text: _Text, rule: BlockedPrompt) -> bool:
    if rule.kind == BlockedPrompt.Kind.WORDS:
        return f" {' '.join(WORD.findall(normal(rule.text)))} " in text.words
    return compiled(rule.text).search(text.plain) is not None


def _prepared(prompt: str) -> _Text:
    plain = normal(prompt)
    return _Text(plain=plain, words=f" {' '.join(WORD.findall(plain))} ")


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> "re2._Regexp[str]":
    options = re2.Options()
    options.case_sensitive, options.max_mem, options.log_errors = False, MAX_MEMORY, False
    return re2.compile(pattern, options)
