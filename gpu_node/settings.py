"""What the node can be told, by environment variables or a `.env` file in the working directory.

Every name has the prefix GPU_NODE_, except VIDEO_API_KEY, which the platform reads too.
"""

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class BadConfiguration(Exception):
    """The node cannot start with these settings."""


class NodeSettings(BaseSettings):
    """The node's settings; the platform's names that share the same `.env` are ignored."""

    model_config = SettingsConfigDict(
        env_prefix="GPU_NODE_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    model: str = Field("THUDM/CogVideoX-5b", min_length=1, description="`tiny`, a hub id, or a folder")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: cpu for tiny, cuda for all else"
    )
    host: str = "127.0.0.1"
    port: int = Field(8081, ge=0, le=65535)
    api_key: SecretStr | None = Field(None, validation_alias="VIDEO_API_KEY")
    save_dir: Path = Path(".data/gpu_node/videos")
    cache_dir: Path | None = Field(None, description="where the tiny model is kept; default: beside save_dir")
    queue_size: int = Field(8, ge=0, le=1000, description="jobs that may wait behind the running one")
    retention_hours: float = Field(24.0, gt=0, description="how long clips and their records are kept")
    min_free_mb: int = Field(512, ge=0, description="below this much free disk, new jobs are refused")
    max_frames: int = Field(49, ge=1, le=1000, description="49 is what CogVideoX-5B was trained for")
    max_steps: int = Field(200, ge=1, le=1000)
    max_pixels: int = Field(1360 * 768, ge=256, description="largest width times height")
    cancel_seconds: float = Field(60.0, gt=0, description="a worker that does not stop by then is killed")
    stall_seconds: float = Field(900.0, gt=0, description="a worker silent for so long in a job is killed")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("api_key")
    @classmethod
    def _blank_is_no_key(cls, key: SecretStr | None) -> SecretStr | None:
        return key if key is not None and key.get_secret_value().strip() else None

    @model_validator(mode="after")
    def _key_unless_loopback(self) -> "NodeSettings":
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(f"VIDEO_API_KEY must be set to listen on {self.host}: anyone could use the GPU")
        return self

    @property
    def model_cache(self) -> Path:
        """Where models that the node builds itself are kept."""
        return self.cache_dir or self.save_dir.absolute().parent / "models"

    @property
    def model_name(self) -> str:
        """The model as it may be shown to anyone."""
        return shown_name(self.model)

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
    """`THUDM/CogVideoX-5b` and `/models/CogVideoX-5b/` → `CogVideoX-5B`; `tiny` → `CogVideoX-tiny`."""
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
