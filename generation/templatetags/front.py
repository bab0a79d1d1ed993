"""The clips that visitors see before they sign in: made by this service itself (`make clips`), kept with the code."""

import functools
import json
from dataclasses import dataclass
from typing import Any

from django import template
from django.contrib.staticfiles import finders
from django.templatetags.static import static

register = template.Library()

FOLDER = "clips"


@dataclass(frozen=True)
class FrontClip:
    """A clip and its poster as addresses; width and height in pixels."""

    prompt: str
    model: str
    video: str
    poster: str
    width: int
    height: int


@register.simple_tag
def front_clips() -> list[FrontClip]:
    """In the order of clips.json; none while nobody has made any."""
    return [
        FrontClip(
            prompt=row["prompt"],
            model=row["model"],
            video=static(f"{FOLDER}/{row['name']}.mp4"),
            poster=static(f"{FOLDER}/{row['name']}.jpg"),
            width=row["width"],
            height=row["height"],
        )
        for row in _list()
    ]


@functools.cache
def _list() -> list[dict[str, Any]]:
    path = finders.find(f"{FOLDER}/clips.json")
    if path is None:
        return []
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  (finders speak of strings)
        rows: list[dict[str, Any]] = json.load(file)
    return rows
