"""What the pages need to know about languages."""

from django import template
from django.urls import reverse
from django.utils.translation import get_language

from accounts.languages import words_version

register = template.Library()


@register.simple_tag
def words_url() -> str:
    """The address of the words that the scripts of a page use, in the language of the page."""
    language = get_language() or "en"
    return reverse("words", kwargs={"language": language, "version": words_version(language)})
