"""What may be asked of the node."""

import hashlib
import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from gpu_node.errors import InvalidRequest
from gpu_node.pictures import PARAM, digest, read_picture
from gpu_node.settings import NodeSettings

FIELD_FPS = 8  # of /generate_video; elsewhere the model's own
DEFAULT_STEPS = 50
# 8× by the VAE, 2× by the transformer's patches; diffusers itself only checks 8 and fails late.
SIZE_UNIT = 16
SMALLEST_SIDE = 32
MAX_PROMPT_CHARACTERS = 4000  # far above T5's 226 tokens, which cut the rest off


def _encodable(text: Any) -> Any:
    """Refuse what no database, file or terminal downstream can hold. Looked at first, for a clear message."""
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

    model_config = ConfigDict(frozen=True)

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

    @property
    def fingerprint(self) -> str:
        """The same for two requests that ask for the same clip."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class GenerateVideoRequest(BaseModel):
    """The body of `POST /generate_video`, as the clients in the field send it."""

    prompt: Prompt
    frames: int = Field(16, ge=1)
    fps: int = Field(FIELD_FPS, ge=1, le=60)
    steps: int = Field(20, ge=1)

    def to_spec(self) -> ClipSpec:
        """The clip that is asked for."""
        return ClipSpec(prompt=self.prompt, num_frames=self.frames, fps=self.fps, steps=self.steps)


class VideoRequest(BaseModel):
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

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None}

    def to_spec(self, *, native_fps: int, image: str | None) -> ClipSpec:
        """The clip that is asked for. `num_frames` goes before `seconds`. `image`: the picture's digest."""
        width, height = self._sides()
        fps = self.fps or native_fps
        frames = self.num_frames
        if frames is None and self.seconds is not None:
            frames = max(1, round(self.seconds * fps))
        return ClipSpec(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            num_frames=frames,
            fps=fps,
            steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            image=image,
        )

    def _sides(self) -> tuple[int | None, int | None]:
        if self.size is None:
            return None, None
        width, _, height = self.size.partition("x")
        return int(width), int(height)


def parse_generate_video(body: Any, settings: NodeSettings) -> ClipSpec:
    """The clip a field client asks for. Raises InvalidRequest."""
    try:
        spec = GenerateVideoRequest.model_validate(body).to_spec()
    except ValidationError as error:
        raise _first_problem(error) from error
    _check_limits(spec, settings, names={"num_frames": "frames", "steps": "steps"})
    return spec


def parse_video(body: Any, settings: NodeSettings) -> tuple[ClipSpec, bytes | None]:
    """The clip that `POST /v1/videos` asks for, and the picture it starts from. Raises InvalidRequest."""
    try:
        request = VideoRequest.model_validate(body)
    except ValidationError as error:
        raise _first_problem(error) from error
    _check_model(request.model, settings)
    picture = read_picture(body.get(PARAM))
    spec = request.to_spec(native_fps=settings.traits.fps, image=digest(picture))
    _check_limits(spec, settings, names={"num_frames": "num_frames", "steps": "num_inference_steps"})
    return spec, picture


def _first_problem(error: ValidationError) -> InvalidRequest:
    problem = error.errors()[0]
    message = str(problem["msg"]).removeprefix("Value error, ")
    param = ".".join(str(part) for part in problem["loc"]) or None
    return InvalidRequest(f"{param}: {message}" if param else message, param=param)


def _check_model(model: str | None, settings: NodeSettings) -> None:
    served = {settings.model_name, settings.backend}
    if model is not None and model.lower() not in {name.lower() for name in served}:
        raise InvalidRequest(f"This node serves {settings.model_name}, not {model[:100]}.", param="model")


def _check_limits(spec: ClipSpec, settings: NodeSettings, *, names: dict[str, str]) -> None:
    if spec.num_frames is not None and spec.num_frames > settings.most_frames:
        raise InvalidRequest(
            f"{names['num_frames']}: at most {settings.most_frames} frames, got {spec.num_frames}",
            param=names["num_frames"],
        )
    if spec.steps > settings.max_steps:
        raise InvalidRequest(
            f"{names['steps']}: at most {settings.max_steps} steps, got {spec.steps}", param=names["steps"]
        )
    if spec.width is not None and spec.height is not None:
        _check_size(spec.width, spec.height, settings)


def _check_size(width: int, height: int, settings: NodeSettings) -> None:
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
