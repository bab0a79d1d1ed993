"""The shapes of the REST API: what is read, what is written, and what the OpenAPI document says of both."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from generation.errors import EmptyPrompt, InvalidSetting
from generation.jobs import catalog, scheduling, submission
from generation.models import GenerationJob, Preset, fields

State = GenerationJob.State

STATUSES = {
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.STORING: "in_progress",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.CANCELED: "failed",
}
EXAMPLE = {
    "id": "video_0123456789abcdef0123456789abcdef",
    "object": "video",
    "status": "in_progress",
    "progress": 40,
    "created_at": 1790000000,
    "completed_at": None,
    "expires_at": None,
    "model": "CogVideoX-5B",
    "prompt": "A paper boat in the rain",
    "seconds": "2",
    "size": "720x480",
    "error": None,
    "remixed_from_video_id": None,
    "preset": "quick",
    "seed": 42,
    "negative_prompt": "",
    "cost": 50,
    "step": 8,
    "steps": 20,
    "queue_position": None,
    "expected_seconds": 28,
    "source": "api",
}

# --- What is read -----------------------------------------------------------------------------------------------------


class Text(serializers.CharField):
    """A string and nothing that could be made one. What it may hold is for the operation to say, in its own words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)
        self.validators = []

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return data


@extend_schema_field({"type": "string", "minLength": 1, "maxLength": settings.MAX_PROMPT_LENGTH})
class Prompt(Text):
    """Left out, null or empty: all the same to a person."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_blank=True, **options)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        if data is serializers.empty or data is None:
            raise EmptyPrompt()
        return super().run_validation(data)


class Seconds(Text):
    """`"2"`, and 2 as well."""

    def to_internal_value(self, data: Any) -> str:
        return super().to_internal_value(str(data) if type(data) is int and abs(data) < 10**6 else data)


class KnownFieldsOnly(serializers.Serializer):
    """A misspelt or unsupported field is named, so that nobody waits for an effect it does not have."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                self.check_field_name(name)
        return super().to_internal_value(data)

    def check_field_name(self, name: str) -> None:
        if name not in self.fields:
            raise InvalidSetting(f"Unknown parameter: {name[:60]!a}.", param=_printable(name))


class NewVideo(KnownFieldsOnly):
    """Without `preset` and `seconds` the default preset is made."""

    prompt = Prompt(help_text="What the clip should show.")
    model = Text(
        required=False, allow_null=True, help_text="One of `GET /v1/models`; left out: what there is."
    )
    seconds = Seconds(
        required=False, allow_null=True, help_text='Chooses the preset by length: `"2"`, `"6"`.'
    )
    size = Text(required=False, allow_null=True, help_text="`WIDTHxHEIGHT`; left out: the model's own.")
    preset = Text(required=False, allow_null=True, help_text="One of `GET /v1/presets`.")
    seed = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=0,
        max_value=submission.MAX_SEED,
        help_text="The same seed makes the same clip.",
    )
    negative_prompt = Text(
        required=False, allow_null=True, allow_blank=True, help_text="What it should not show."
    )

    def check_field_name(self, name: str) -> None:
        if name.startswith("input_reference"):
            raise InvalidSetting(
                "input_reference is not supported: clips are made from text alone.", param="input_reference"
            )
        super().check_field_name(name)


class NewRemix(KnownFieldsOnly):
    """Everything else, the seed included, stays as it was in the video that is remixed."""

    prompt = Prompt(help_text="What the clip should show instead.")


class Page(serializers.Serializer):
    """Which part of a list is wanted."""

    after = Text(required=False, help_text="The last id of the page before.")
    limit = serializers.IntegerField(default=20, min_value=1, max_value=100)
    order = serializers.ChoiceField(choices=["asc", "desc"], default="desc", help_text="By time of creation.")


class Wanted(serializers.Serializer):
    """Which file of a video is wanted."""

    variant = serializers.ChoiceField(choices=["video", "thumbnail"], default="video")


# --- What is written --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What a video's answer needs besides its row, read once for a whole page: a few queries, however many videos.

    positions: place in line of the queued ones, 1 is next. waits: expected seconds by preset, of the live ones.
    """

    offer: catalog.Offer
    positions: Mapping[uuid.UUID, int]
    waits: Mapping[int, int]


def surroundings(jobs: Sequence[GenerationJob]) -> Surroundings:
    """For these jobs, their presets loaded."""
    live_presets = {job.preset_id: job.preset for job in jobs if job.is_live}
    return Surroundings(
        offer=catalog.current(),
        positions=scheduling.queue_positions(jobs),
        waits=catalog.expected_seconds_of(live_presets.values()),
    )


def with_what_is_shown(jobs: "QuerySet[GenerationJob]") -> "QuerySet[GenerationJob]":
    """The rows with everything a video's answer follows, in one query."""
    return jobs.select_related("preset", "current_attempt__node")


def video_json(job: GenerationJob) -> dict[str, Any]:
    """One job as the API shows it."""
    return dict(VideoSerializer(job, context={"around": surroundings([job])}).data)


def videos_json(jobs: Sequence[GenerationJob]) -> list[dict[str, Any]]:
    """Many jobs, in the same order."""
    return list(VideoSerializer(jobs, many=True, context={"around": surroundings(jobs)}).data)


class VideoError(serializers.Serializer):
    code = serializers.CharField(source="error_code", help_text="`canceled` when its owner canceled it.")
    message = serializers.CharField(source="error_message")


class VideoSerializer(serializers.Serializer):
    """OpenAI's video object and, from `preset` on, what else there is to know."""

    id = serializers.CharField(source="public_id")
    object = serializers.SerializerMethodField()
    status = serializers.SerializerMethodField()
    progress = serializers.SerializerMethodField(
        help_text="Percent of the denoising steps done; 100 when completed."
    )
    created_at = serializers.SerializerMethodField(help_text="Unix time.")
    completed_at = serializers.SerializerMethodField(
        help_text="Unix time of its end, whether completed or failed."
    )
    expires_at = serializers.SerializerMethodField(
        help_text="Always null: a video is kept until it is deleted."
    )
    model = serializers.SerializerMethodField(help_text="Null until a node was reached.")
    prompt = serializers.CharField()
    seconds = serializers.SerializerMethodField()
    size = serializers.SerializerMethodField(help_text="Null until it is known.")
    error = serializers.SerializerMethodField()
    remixed_from_video_id = serializers.SerializerMethodField()

    preset = serializers.CharField(source="preset.name")
    seed = serializers.IntegerField()
    negative_prompt = serializers.CharField()
    cost = serializers.IntegerField(
        help_text="Credits held while it is made and charged when it is completed."
    )
    step = serializers.IntegerField(help_text="Denoising steps done,")
    steps = serializers.IntegerField(source="num_inference_steps", help_text="of how many.")
    queue_position = serializers.SerializerMethodField(help_text="1 is next; null when it does not wait.")
    expected_seconds = serializers.SerializerMethodField(
        help_text="From submit to clip without a queue, measured on the last clips; null when it has ended."
    )
    source = serializers.ChoiceField(  # type: ignore[assignment]  # the metaclass takes it
        choices=GenerationJob.Source.choices, help_text="The door it came in by."
    )

    @property
    def _around(self) -> Surroundings:
        around: Surroundings = self.context["around"]
        return around

    def get_object(self, job: GenerationJob) -> str:
        return "video"

    def get_status(self, job: GenerationJob) -> str:
        return STATUSES[State(job.state)]

    def get_progress(self, job: GenerationJob) -> int:
        if job.state == State.COMPLETED:
            return 100
        return min(99, 100 * job.step // max(1, job.num_inference_steps))

    def get_created_at(self, job: GenerationJob) -> int:
        return int(job.created_at.timestamp())

    def get_completed_at(self, job: GenerationJob) -> int | None:
        return int(job.finished_at.timestamp()) if job.finished_at else None

    def get_expires_at(self, job: GenerationJob) -> int | None:
        return None

    def get_model(self, job: GenerationJob) -> str | None:
        node = job.current_attempt.node if job.current_attempt else None
        return (node.backend if node else "") or job.model or self._around.offer.model

    def get_seconds(self, job: GenerationJob) -> str:
        return str(Preset(num_frames=job.num_frames, fps=job.fps).seconds)

    def get_size(self, job: GenerationJob) -> str | None:
        made = f"{job.width}x{job.height}" if job.width and job.height else ""
        return made or job.size or self._around.offer.size

    @extend_schema_field(VideoError(allow_null=True))
    def get_error(self, job: GenerationJob) -> dict[str, Any] | None:
        return dict(VideoError(job).data) if STATUSES[State(job.state)] == "failed" else None

    def get_remixed_from_video_id(self, job: GenerationJob) -> str | None:
        return fields.public_id(job.remixed_from_id) if job.remixed_from_id else None

    def get_queue_position(self, job: GenerationJob) -> int | None:
        return self._around.positions.get(job.pk)

    def get_expected_seconds(self, job: GenerationJob) -> int | None:
        return self._around.waits.get(job.preset_id) if job.is_live else None


class VideoList(serializers.Serializer):
    object = serializers.CharField(default="list")
    data = VideoSerializer(many=True)  # type: ignore[assignment]  # the wire's name for it
    first_id = serializers.CharField(allow_null=True)
    last_id = serializers.CharField(allow_null=True, help_text="`after` of the next page.")
    has_more = serializers.BooleanField()


class DeletedVideo(serializers.Serializer):
    id = serializers.CharField()
    object = serializers.CharField(default="video.deleted")
    deleted = serializers.BooleanField()


class ModelSerializer(serializers.Serializer):
    """A backend that a GPU node runs, in OpenAI's shape of a model."""

    id = serializers.CharField()
    object = serializers.SerializerMethodField()
    created = serializers.SerializerMethodField(help_text="Unix time its first node was added.")
    owned_by = serializers.SerializerMethodField()

    def get_object(self, model: catalog.Model) -> str:
        return "model"

    def get_created(self, model: catalog.Model) -> int:
        return int(model.created.timestamp())

    def get_owned_by(self, model: catalog.Model) -> str:
        return "system"


class ModelList(serializers.Serializer):
    object = serializers.CharField(default="list")
    data = ModelSerializer(many=True)  # type: ignore[assignment]


class PresetSerializer(serializers.Serializer):
    """What a clip costs the caller and how long it is expected to take, before it is asked for."""

    id = serializers.CharField(source="preset.name")
    object = serializers.SerializerMethodField()
    label = serializers.CharField(source="preset.label")  # type: ignore[assignment]
    seconds = serializers.SerializerMethodField()
    frames = serializers.IntegerField(source="preset.num_frames")
    fps = serializers.IntegerField(source="preset.fps")
    steps = serializers.IntegerField(source="preset.num_inference_steps")
    cost = serializers.IntegerField(help_text="Credits.")
    expected_seconds = serializers.IntegerField(help_text="From submit to clip without a queue.")
    default = serializers.BooleanField(source="preset.is_default")

    def get_object(self, quote: catalog.Quote) -> str:
        return "preset"

    def get_seconds(self, quote: catalog.Quote) -> str:
        return str(quote.preset.seconds)


class PresetList(serializers.Serializer):
    object = serializers.CharField(default="list")
    data = PresetSerializer(many=True)  # type: ignore[assignment]


def _printable(name: str) -> str | None:
    return name if len(name) <= 60 and name.isascii() and name.isprintable() else None
