"""What the node can be told, by environment variables or a `.env` file in the working directory.

Every name has the prefix GPU_NODE_, except VIDEO_API_KEY, which the platform reads too.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_node import models
from gpu_node.models import Dtype
from gpu_node.profiles import PROFILES, ProfileName, Quantization, StepCache

EMBEDDED = ("tiny", "tiny-random")  # come with the project: one that draws what it is told, and one for tests
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class BadConfiguration(Exception):
    """The node cannot start with these settings."""


class EngineOptions(BaseModel):
    """How the worker process is to load and run its model; `auto` is left to what it finds there."""

    model_config = ConfigDict(frozen=True)

    model: str
    device: str
    cache_dir: Path
    log_level: str
    profile: ProfileName
    dtype: Dtype | Literal["auto"]
    dtypes: tuple[Dtype, ...]
    quantization: Quantization
    step_cache: StepCache
    saves_memory: bool
    attention: str
    compile: Literal["auto", "on", "off"]
    compile_backend: str = "inductor"
    warm_frames: tuple[int, ...]


class NodeSettings(BaseSettings):
    """The node's settings; the platform's names that share the same `.env` are ignored."""

    model_config = SettingsConfigDict(
        env_prefix="GPU_NODE_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    model: str = Field(
        "THUDM/CogVideoX-5b",
        min_length=1,
        description="`tiny`, `tiny-random`, 5B, 2B, 5B-I2V, 1.5-5B, a hub id, or a folder",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto: cpu for tiny and tiny-random, cuda for all else",
    )
    profile: ProfileName = Field("exact", description="exact, fast or memory")
    dtype: Dtype | Literal["auto"] = Field("auto", description="auto: as the model was published")
    quantization: Quantization | Literal["auto"] = Field("auto", description="auto: as the profile says")
    step_cache: StepCache | Literal["auto"] = Field("auto", description="auto: as the profile says")
    attention: str = Field("auto", description="auto: the fastest exact backend, measured at start-up")
    compile: Literal["auto", "on", "off"] = Field("auto", description="auto: on with CUDA")
    warm_frames: Annotated[tuple[int, ...] | None, NoDecode] = Field(
        None, description="frame counts compiled at start-up; default: of both presets with CUDA, else none"
    )
    host: str = "127.0.0.1"
    port: int = Field(8081, ge=0, le=65535)
    api_key: SecretStr | None = Field(None, validation_alias="VIDEO_API_KEY")
    save_dir: Path = Path(".data/gpu_node/videos")
    cache_dir: Path | None = Field(None, description="where tiny-random is kept; default: beside save_dir")
    queue_size: int = Field(8, ge=0, le=1000, description="jobs that may wait behind the running one")
    retention_hours: float = Field(24.0, gt=0, description="how long clips and their records are kept")
    min_free_mb: int = Field(512, ge=0, description="below this much free disk, new jobs are refused")
    max_frames: int = Field(
        0, ge=0, le=1000, description="0: what the model was trained for, 49 for CogVideoX-5B"
    )
    max_steps: int = Field(200, ge=1, le=1000)
    max_pixels: int = Field(1360 * 768, ge=256, description="largest width times height")
    cancel_seconds: float = Field(60.0, gt=0, description="a worker that does not stop by then is killed")
    stall_seconds: float = Field(900.0, gt=0, description="a worker silent for so long in a job is killed")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("api_key")
    @classmethod
    def _blank_is_no_key(cls, key: SecretStr | None) -> SecretStr | None:
        return key if key is not None and key.get_secret_value().strip() else None

    @field_validator("warm_frames", mode="before")
    @classmethod
    def _numbers_by_commas(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @model_validator(mode="after")
    def _sound_precision(self) -> "NodeSettings":
        """float16 gives NaN and black frames on every 5B."""
        if self.dtype == "float16" and self.dtype not in self.traits.dtypes:
            raise ValueError(
                f"GPU_NODE_DTYPE: float16 gives black frames with {self.model_name}; use bfloat16 or auto"
            )
        return self

    @model_validator(mode="after")
    def _lossless_if_exact(self) -> "NodeSettings":
        """A clip recorded as exact is exact."""
        if self.profile == "exact" and (
            self.engine.quantization != "none" or self.engine.step_cache != "none"
        ):
            raise ValueError(
                "GPU_NODE_PROFILE: exact allows neither GPU_NODE_QUANTIZATION nor GPU_NODE_STEP_CACHE"
            )
        return self

    @model_validator(mode="after")
    def _key_unless_loopback(self) -> "NodeSettings":
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(f"VIDEO_API_KEY must be set to listen on {self.host}: anyone could use the GPU")
        return self

    @property
    def traits(self) -> models.Traits:
        """What is known of the model; of an unknown one, what holds for the 5B."""
        return models.find(self.model) or models.DEFAULT

    @property
    def most_frames(self) -> int:
        """The longest clip that may be asked for."""
        return self.max_frames or self.traits.frames

    @property
    def engine(self) -> EngineOptions:
        """What the worker process is told."""
        profile = PROFILES[self.profile]
        return EngineOptions(
            model=models.hub_id(self.model),
            device=self.device,
            cache_dir=self.model_cache,
            log_level=self.log_level,
            profile=self.profile,
            dtype=self.dtype,
            dtypes=self.traits.dtypes,
            quantization=profile.quantization if self.quantization == "auto" else self.quantization,
            step_cache=profile.step_cache if self.step_cache == "auto" else self.step_cache,
            saves_memory=profile.saves_memory,
            attention=self.attention,
            compile=self.compile,
            warm_frames=self._warm_frames,
        )

    @property
    def _warm_frames(self) -> tuple[int, ...]:
        if self.warm_frames is not None:
            return self.warm_frames
        on_cpu = self.device == "cpu" or (self.device == "auto" and self.model in EMBEDDED)
        return () if on_cpu or self.compile == "off" else (17, self.traits.frames)

    @property
    def model_cache(self) -> Path:
        """Where models that the node builds itself are kept."""
        return self.cache_dir or self.save_dir.absolute().parent / "models"

    @property
    def model_name(self) -> str:
        """The model as it may be shown to anyone."""
        return shown_name(models.hub_id(self.model))

    @property
    def backend(self) -> str:
        """The backend's name: CogVideoX-5B, CogVideoX-tiny, …"""
        return backend_name(self.model)


def shown_name(model: str) -> str:
    """The model's name for people without the key: of a folder, only the last part of the path."""
    return Path(model).name if Path(model).is_dir() or Path(model).is_absolute() else model


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`. Names other than localhost count as no."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def backend_name(model: str) -> str:
    """`THUDM/CogVideoX-5b`, `5b` and `/models/CogVideoX-5b/` → `CogVideoX-5B`; `tiny` → `CogVideoX-tiny`."""
    traits = models.find(model)
    if traits is not None:
        return traits.name
    name = Path(model).name
    family, _, size = name.rpartition("-")
    if not family.lower().startswith("cogvideox"):
        return f"CogVideoX-{name}"
    return f"{family}-{size.upper() if size[:1].isdigit() else size}"


def load_settings() -> NodeSettings:
    """Read and check the settings, and make the folder for the clips. Raises BadConfiguration in one line."""
    try:
        settings = NodeSettings()
    except ValidationError as error:
        raise BadConfiguration("; ".join(_plain(problem) for problem in error.errors())) from error
    try:
        settings.save_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.save_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadConfiguration(
            f"GPU_NODE_SAVE_DIR: cannot write to {settings.save_dir}: {error.strerror}"
        ) from error
    return settings


def _plain(problem: object) -> str:
    """One pydantic error as `NAME: what is wrong`. Never shows the value of the key."""
    assert isinstance(problem, dict)
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    name = where if where.isupper() else f"GPU_NODE_{where.upper()}"
    return (
        f"{name}: {message} (got {problem['input']!r})" if name != "VIDEO_API_KEY" else f"{name}: {message}"
    )
