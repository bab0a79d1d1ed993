"""The picture that an image-to-video clip starts from, as it comes from a client."""

import base64
import binascii
import hashlib
import io
from typing import Any

from PIL import Image

from gpu_node.errors import InvalidRequest

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 50_000_000
PARAM = "input_reference"


def read_picture(value: Any) -> bytes | None:
    """The picture's file: an upload's bytes, or a data URL as OpenAI's JSON has it. Raises InvalidRequest."""
    if isinstance(value, dict):
        value = value.get("image_url")
    if value is None or value == "":
        return None
    data = value if isinstance(value, bytes) else _from_data_url(value)
    _check(data)
    return data


def digest(picture: bytes | None) -> str | None:
    """What tells one picture from another."""
    return None if picture is None else hashlib.sha256(picture).hexdigest()


def _from_data_url(value: Any) -> bytes:
    """Other URLs are not fetched: the node speaks to nobody on a client's behalf."""
    head, _, body = value.partition(",") if isinstance(value, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise InvalidRequest(f"{PARAM}: upload a file, or send a data: URL in base64", param=PARAM)
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(f"{PARAM}: the data URL is not valid base64", param=PARAM) from error


def _check(data: bytes) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            too_large = image.width * image.height > MOST_PIXELS
            image.verify()
    except Exception as error:  # Pillow has no one family of errors for broken files
        raise InvalidRequest(f"{PARAM}: not a sound PNG, JPEG or WebP picture", param=PARAM) from error
    if too_large:
        raise InvalidRequest(f"{PARAM}: at most {MOST_PIXELS // 10**6} million pixels", param=PARAM)
