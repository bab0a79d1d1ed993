"""Jobs found by words of their prompt or error. An index of PostgreSQL's own text search answers it (`job_words`), so
that it takes no longer with a million jobs; what every PostgreSQL has is enough for it: parts within a word, which are
not found, would want an extension (pg_trgm) that the embedded server does not bring. Ids, names and addresses are no
words: the list of jobs looks for these itself.
"""

import re

from django.contrib.postgres.search import SearchQuery, SearchVector
from django.db.models import QuerySet
from django.db.models.functions import Lower

from generation.models import GenerationJob

WORD = re.compile(r"[^\W_]+")


def with_words(jobs: "QuerySet[GenerationJob]", text: str) -> "QuerySet[GenerationJob]":
    """Of these, the ones with every word of `text`, or words that begin so, in prompt or error."""
    words = WORD.findall(text.lower())
    if not words:
        return jobs.none()
    query = SearchQuery(" & ".join(f"{word}:*" for word in words), config="simple", search_type="raw")
    return jobs.alias(words=VECTOR).filter(words=query)


def is_by_words(jobs: "QuerySet[GenerationJob]") -> bool:
    return "words" in jobs.query.annotations


# As the index has it, to the letter.
VECTOR = SearchVector(Lower("prompt"), Lower("error_message"), config="simple")
