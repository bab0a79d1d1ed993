"""Settings of the node, from environment variables or a `.env` file in the working directory.

Every name has the prefix GPU_NODE_, except VIDEO_API_KEY, which the platform reads too. docs/configuration.md describes
each.
"""

import ipaddress
from dataclasses import replace
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

from gpu_node import catalog
from gpu_node.catalog import (
    LOSSY_ATTENTION,
    PROFILES,
    AttentionBackend,
    Dtype,
    Profile,
    ProfileName,
    Quantization,
    StepCache,
)

EMBEDDED = ("tiny", "tiny-random")  # come with the project: one that draws its prompts, and one for tests
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class BadConfiguration(Exception):
    """The node cannot start with these settings."""


class EngineOptions(BaseModel):
    """Settings that the worker process needs too, to load and run its model; `auto` is left to what it finds there."""

    model_config = ConfigDict(frozen=True)

    model: str = Field("THUDM/CogVideoX-5b", min_length=1)
    revision: str = ""  # as the catalogue says
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    profile: ProfileName = "exact"
    dtype: Dtype | Literal["auto"] = "auto"
    quantization: Quantization | Literal["auto"] = "auto"  # as the profile says, and so is the step cache
    step_cache: StepCache | Literal["auto"] = "auto"
    attention: AttentionBackend = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    warm_frames: Annotated[tuple[int, ...] | None, NoDecode] = None
    cache_dir: Path | None = None  # beside save_dir
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("warm_frames", mode="before")
    @classmethod
    def _numbers_by_commas(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @property
    def traits(self) -> catalog.Traits:
        """Facts about the model; about an unknown one, those that hold for the 5B."""
        return catalog.find(self.model) or catalog.DEFAULT

    @property
    def known_revision(self) -> str:
        """The commit or branch that is set, else the catalogue's: of other repositories the newest."""
        owner = catalog.hub_id(self.model).partition("/")[0]
        known = catalog.find(self.model) if owner in ("THUDM", "zai-org") else None
        return self.revision or (known.revision if known else "main")

    @property
    def levers(self) -> Profile:
        """The profile, with what GPU_NODE_QUANTIZATION, GPU_NODE_STEP_CACHE and GPU_NODE_DTYPE change in it."""
        profile = PROFILES[self.profile]
        return replace(
            profile,
            quantization=profile.quantization if self.quantization == "auto" else self.quantization,
            step_cache=profile.step_cache if self.step_cache == "auto" else self.step_cache,
            is_float32=self.dtype == "float32",
        )

    @property
    def frames_to_warm(self) -> tuple[int, ...]:
        """Lengths of the clips that are made once at start-up; by default of both presets, where that compiles."""
        if self.warm_frames is not None:
            return self.warm_frames
        on_cpu = self.device == "cpu" or (self.device == "auto" and self.model in EMBEDDED)
        return () if on_cpu or self.compile == "off" else (17, self.traits.frames)


class NodeSettings(EngineOptions, BaseSettings):
    """The node's settings; the platform's names that share the same `.env` are ignored."""

    model_config = SettingsConfigDict(
        env_prefix="GPU_NODE_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    host: str = "127.0.0.1"
    port: int = Field(8081, ge=0, le=65535)
    api_key: SecretStr | None = Field(None, validation_alias="VIDEO_API_KEY")
    save_dir: Path = Path(".data/gpu_node/videos")
    queue_size: int = Field(8, ge=0, le=1000)
    retention_hours: float = Field(24.0, gt=0)
    min_free_mb: int = Field(512, ge=0)
    max_frames: int = Field(0, ge=0, le=1000)  # 0: what the model was trained for
    max_steps: int = Field(200, ge=1, le=1000)
    max_pixels: int = Field(1360 * 768, ge=256)
    cancel_seconds: float = Field(60.0, gt=0)
    stall_seconds: float = Field(900.0, gt=0)
    worker_command: str = ""  # python -m gpu_node.worker

    @field_validator("api_key")
    @classmethod
    def _blank_is_no_key(cls, key: SecretStr | None) -> SecretStr | None:
        return key if key is not None and key.get_secret_value().strip() else None

    @model_validator(mode="after")
    def _fit_together(self) -> "NodeSettings":
        """Refuse black frames, which float16 gives on every 5B, clips wrongly recorded as exact, and an open node."""
        if self.dtype == "float16" and self.dtype not in self.traits.dtypes:
            raise ValueError(
                f"GPU_NODE_DTYPE: float16 gives black frames with {self.model_name}; use bfloat16 or auto"
            )
        levers = (self.levers.quantization, self.levers.step_cache)
        if self.profile == "exact" and (levers != ("none", "none") or self.attention in LOSSY_ATTENTION):
            raise ValueError(
                "GPU_NODE_PROFILE: exact allows no GPU_NODE_QUANTIZATION, no GPU_NODE_STEP_CACHE and no lossy "
                "GPU_NODE_ATTENTION"
            )
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(f"VIDEO_API_KEY must be set to listen on {self.host}: anyone could use the GPU")
        return self

    @property
    def most_frames(self) -> int:
        """The longest clip that may be asked for."""
        return self.max_frames or self.traits.frames

    @property
    def engine(self) -> EngineOptions:
        """Options for the worker process."""
        found = {"model": catalog.hub_id(self.model), "cache_dir": self.model_cache}
        return EngineOptions.model_validate(self.model_dump() | found)

    @property
    def model_cache(self) -> Path:
        """Folder of the models that the node builds itself."""
        return self.cache_dir or self.save_dir.absolute().parent / "models"

    @property
    def model_name(self) -> str:
        """Name of the model that may be shown to anyone."""
        return shown_name(catalog.hub_id(self.model))

    @property
    def backend(self) -> str:
        """Name of the backend: CogVideoX-5B, CogVideoX-tiny, …"""
        return backend_name(self.model)


def shown_name(model: str) -> str:
    """Return the model's name for people without the key: of a folder, only the last part of the path."""
    return Path(model).name if Path(model).is_dir() or Path(model).is_absolute() else model


def is_loopback(host: str) -> bool:
    """Return True when only this machine can reach a server bound to `host`. Other names than localhost count as no."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def backend_name(model: str) -> str:
    """Name the backend: `5b`, `THUDM/CogVideoX-5b` and such a folder → `CogVideoX-5B`; `tiny` → `CogVideoX-tiny`."""
    traits = catalog.find(model)
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
    """Return a pydantic error as `NAME: what is wrong`. Never shows the value of the key."""
    assert isinstance(problem, dict)
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    name = where if where.isupper() else f"GPU_NODE_{where.upper()}"
    return (
        f"{name}: {message} (got {problem['input']!r})" if name != "VIDEO_API_KEY" else f"{name}: {message}"
    )
