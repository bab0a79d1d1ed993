"""Requests to the node, and the one description of a clip that they become."""

import base64
import binascii
import hashlib
import io
import re
from typing import Annotated, Any

from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpu_node.errors import InvalidRequest
from gpu_node.settings import NodeSettings

FIELD_FPS = 8  # of /generate_video; elsewhere the model's own
DEFAULT_STEPS = 50
# 8× by the VAE, 2× by the transformer's patches; diffusers itself only checks 8 and fails late.
SIZE_UNIT = 16
SMALLEST_SIDE = 32
MAX_PROMPT_CHARACTERS = 4000  # far above T5's 226 tokens, which cut the rest off
PICTURE = "input_reference"  # the field that holds the picture a clip starts from
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PICTURE_PIXELS = 50_000_000


def _encodable(text: Any) -> Any:
    """Refuse what no database, file or terminal downstream can hold. Runs first, for a clear message."""
    if not isinstance(text, str):
        return text
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must not contain lone surrogates")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Text = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS), BeforeValidator(_encodable)]
Prompt = Annotated[Text, AfterValidator(_not_blank)]
Size = Annotated[str, Field(pattern=re.compile(r"^\d{2,5}x\d{2,5}$"))]


class ClipSpec(BaseModel):
    """One clip as asked for; None means the model's own default. `image`: the digest of the picture it starts from."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int
    steps: int = DEFAULT_STEPS
    guidance_scale: float | None = None
    seed: int | None = None
    image: str | None = None

    def hash(self) -> str:
        """Return the same for two requests that ask for the same clip."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Clip(ClipSpec):
    """One clip with nothing left to the model: sizes in pixels, multiples of 16.

    `generated_frames` (8N+1, 16N+1 for CogVideoX 1.5) are made, the first `num_frames` are kept.
    """

    width: int
    height: int
    num_frames: int
    generated_frames: int
    guidance_scale: float
    seed: int


class GivenFields(BaseModel):
    """A body whose fields count as left out where they are null or empty, as many SDKs send what is not set."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        # An empty prompt has a message of its own.
        left_out = {
            name for name, value in body.items() if value is None or (value == "" and name != "prompt")
        }
        return {name: value for name, value in body.items() if name not in left_out}


class GenerateVideoRequest(GivenFields):
    """The body of `POST /generate_video`, as the clients in the field send it."""

    prompt: Prompt
    frames: int = Field(16, ge=1)
    fps: int = Field(FIELD_FPS, ge=1, le=60)
    steps: int = Field(20, ge=1)


class VideoRequest(GivenFields):
    """The body of `POST /v1/videos`: OpenAI's fields and those that vLLM-Omni adds. Others are ignored."""

    model_config = ConfigDict(allow_inf_nan=False, protected_namespaces=())

    prompt: Prompt
    model: str | None = None
    seconds: float | None = Field(None, gt=0, le=600)
    size: Size | None = None
    num_frames: int | None = Field(None, ge=1)
    fps: int | None = Field(None, ge=1, le=60)
    num_inference_steps: int = Field(DEFAULT_STEPS, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=50)
    seed: int | None = Field(None, ge=0, lt=2**63)
    negative_prompt: Text = ""


def parse_generate_video(body: Any, settings: NodeSettings) -> ClipSpec:
    """Read the clip that a field client asks for. Raises ValidationError or InvalidRequest."""
    request = GenerateVideoRequest.model_validate(body)
    _check_limits(settings, frames=("frames", request.frames), steps=("steps", request.steps))
    return ClipSpec(prompt=request.prompt, num_frames=request.frames, fps=request.fps, steps=request.steps)


def parse_video(body: Any, settings: NodeSettings) -> tuple[ClipSpec, bytes | None]:
    """Read the clip that `POST /v1/videos` asks for, and the picture it starts from.

    Raises ValidationError or InvalidRequest. `num_frames` goes before `seconds`.
    """
    request = VideoRequest.model_validate(body)
    served = {settings.model_name.lower(), settings.backend.lower()}
    if request.model is not None and request.model.lower() not in served:
        raise InvalidRequest(
            f"This node serves {settings.model_name}, not {request.model[:100]}.", param="model"
        )
    picture = _read_picture(body.get(PICTURE))
    fps = request.fps or settings.traits.fps
    frames = request.num_frames
    if frames is None and request.seconds is not None:
        frames = max(1, round(request.seconds * fps))
    steps = request.num_inference_steps
    _check_limits(settings, frames=("num_frames", frames), steps=("num_inference_steps", steps))
    width, height = _sides(request.size, settings)
    spec = ClipSpec(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=width,
        height=height,
        num_frames=frames,
        fps=fps,
        steps=steps,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        image=None if picture is None else hashlib.sha256(picture).hexdigest(),
    )
    return spec, picture


def _check_limits(settings: NodeSettings, *, frames: tuple[str, int | None], steps: tuple[str, int]) -> None:
    """Refuse what is too long. Each number comes with the name that its protocol gives it."""
    for (name, value), most, unit in (
        (frames, settings.most_frames, "frames"),
        (steps, settings.max_steps, "steps"),
    ):
        if value is not None and value > most:
            raise InvalidRequest(f"{name}: at most {most} {unit}, got {value}", param=name)


def _sides(size: str | None, settings: NodeSettings) -> tuple[int | None, int | None]:
    """Return width and height of `size`, as "720x480"."""
    if size is None:
        return None, None
    width, height = (int(side) for side in size.split("x"))
    if width % SIZE_UNIT or height % SIZE_UNIT:
        raise InvalidRequest(
            f"size: width and height must be multiples of 16, got {width}x{height}", param="size"
        )
    if min(width, height) < SMALLEST_SIDE or width * height > settings.max_pixels:
        raise InvalidRequest(
            f"size: each side at least {SMALLEST_SIDE} pixels, {settings.max_pixels} pixels in all at most, "
            f"got {width}x{height}",
            param="size",
        )
    return width, height


def _read_picture(value: Any) -> bytes | None:
    """Return the picture's file: an upload's bytes, or a data URL as OpenAI's JSON has it. Raises InvalidRequest.

    Other URLs are not fetched: the node opens no connection on a client's behalf.
    """
    if isinstance(value, dict):
        value = value.get("image_url")
    if value is None or value == "":
        return None
    if not isinstance(value, bytes):
        head, _, encoded = value.partition(",") if isinstance(value, str) else ("", "", "")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise InvalidRequest(f"{PICTURE}: upload a file, or send a data: URL in base64", param=PICTURE)
        try:
            value = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"{PICTURE}: the data URL is not valid base64", param=PICTURE) from error
    data: bytes = value
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
            too_large = image.width * image.height > MOST_PICTURE_PIXELS
            image.verify()
    except Exception as error:  # Pillow has no one family of errors for broken files
        raise InvalidRequest(f"{PICTURE}: not a sound PNG, JPEG or WebP picture", param=PICTURE) from error
    if too_large:
        raise InvalidRequest(
            f"{PICTURE}: at most {MOST_PICTURE_PIXELS // 10**6} million pixels", param=PICTURE
        )
    return data
