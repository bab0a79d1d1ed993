"""Shapes of the REST API: what is read, what is written, and both in the OpenAPI document.

Serializers check what is read; of what is written they are the declaration, and a function beside each makes the JSON.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field, inline_serializer
from rest_framework import serializers

from accounts.api import EmptyIsLeftOut
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


OPTIONAL: dict[str, Any] = {"required": False, "allow_null": True, "allow_blank": True}


class Text(serializers.CharField):
    """A string, and nothing that could be made one. The operation checks its contents, with its own messages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)
        self.validators = []

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return data


@extend_schema_field({"type": "string", "minLength": 1, "maxLength": settings.MAX_PROMPT_LENGTH})
class Prompt(Text):
    """A prompt; left out, null and empty are the same mistake."""

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


class KnownFieldsOnly(EmptyIsLeftOut):
    """Refuses a misspelt or unsupported field by name, instead of ignoring it."""

    def check_field_name(self, name: str) -> None:
        if name not in self.fields:
            param = name if len(name) <= 60 and name.isascii() and name.isprintable() else None
            raise InvalidSetting(f"Unknown parameter: {name[:60]!a}.", param=param)


class NewVideo(KnownFieldsOnly):
    """Without `preset` and `seconds` the default preset is made."""

    prompt = Prompt(help_text="What the clip should show.")
    model = Text(**OPTIONAL, help_text="One of `GET /v1/models`; left out: what there is.")
    seconds = Seconds(**OPTIONAL, help_text='Chooses the preset by length: `"2"`, `"6"`.')
    size = Text(**OPTIONAL, help_text="`WIDTHxHEIGHT`; left out: the model's own.")
    preset = Text(**OPTIONAL, help_text="One of `GET /v1/presets`.")
    seed = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=0,
        max_value=submission.MAX_SEED,
        help_text="The same seed makes the same clip.",
    )
    negative_prompt = Text(**OPTIONAL, help_text="What it should not show.")

    def check_field_name(self, name: str) -> None:
        if name.startswith("input_reference"):
            raise InvalidSetting(
                "input_reference is not supported: clips are made from text alone.", param="input_reference"
            )
        super().check_field_name(name)


class NewRemix(KnownFieldsOnly):
    """Everything else, the seed included, stays as it was in the video that is remixed."""

    prompt = Prompt(help_text="What the clip should show instead.")


class PageQuery(EmptyIsLeftOut):
    """The part of a list to return."""

    after = Text(required=False, allow_blank=True, help_text="The last id of the page before.")
    limit = serializers.IntegerField(default=20, min_value=1, max_value=100)
    order = serializers.ChoiceField(
        choices=["asc", "desc"], default="desc", allow_blank=True, help_text="By time of creation."
    )


class ContentQuery(EmptyIsLeftOut):
    """The file of a video to return."""

    variant = serializers.ChoiceField(choices=["video", "thumbnail"], default="video", allow_blank=True)


# --- What is written --------------------------------------------------------------------------------------------------


class VideoError(serializers.Serializer):
    code = serializers.CharField(help_text="`canceled` when its owner canceled it.")
    message = serializers.CharField()


class VideoSerializer(serializers.Serializer):
    """OpenAI's video object and, from `preset` on, what else there is to know."""

    id = serializers.CharField()
    object = serializers.CharField(read_only=True)
    status = serializers.CharField(read_only=True)
    progress = serializers.IntegerField(
        read_only=True, help_text="Percent of the denoising steps done; 100 when completed."
    )
    created_at = serializers.IntegerField(read_only=True, help_text="Unix time.")
    completed_at = serializers.IntegerField(
        read_only=True, allow_null=True, help_text="Unix time of its end, whether completed or failed."
    )
    expires_at = serializers.IntegerField(
        read_only=True, allow_null=True, help_text="Always null: a video is kept until it is deleted."
    )
    model = serializers.CharField(read_only=True, allow_null=True, help_text="Null until a node was reached.")
    prompt = serializers.CharField()
    seconds = serializers.CharField(read_only=True)
    size = serializers.CharField(read_only=True, allow_null=True, help_text="Null until it is known.")
    error = VideoError(read_only=True, allow_null=True)
    remixed_from_video_id = serializers.CharField(read_only=True, allow_null=True)

    preset = serializers.CharField()
    seed = serializers.IntegerField()
    negative_prompt = serializers.CharField()
    cost = serializers.IntegerField(
        help_text="Credits held while it is made and charged when it is completed."
    )
    step = serializers.IntegerField(help_text="Denoising steps done,")
    steps = serializers.IntegerField(help_text="of how many.")
    queue_position = serializers.IntegerField(
        read_only=True, allow_null=True, help_text="1 is next; null when it does not wait."
    )
    expected_seconds = serializers.IntegerField(
        read_only=True,
        allow_null=True,
        help_text="From submit to clip without a queue, measured on the last clips; null when it has ended.",
    )
    source = serializers.ChoiceField(  # type: ignore[assignment]  # the metaclass takes it
        choices=GenerationJob.Source.choices, help_text="Where it was submitted."
    )


def video_json(job: GenerationJob) -> dict[str, Any]:
    return videos_json([job])[0]


def videos_json(jobs: Sequence[GenerationJob]) -> list[dict[str, Any]]:
    """Make the JSON of many jobs, in the same order and in a few queries, however many there are."""
    offer = catalog.current_offer()
    positions = scheduling.queue_positions(jobs)
    waits = catalog.expected_seconds_of({job.preset_id: job.preset for job in jobs if job.is_live}.values())
    return [
        _video_json(job, offer, positions.get(job.pk), waits.get(job.preset_id) if job.is_live else None)
        for job in jobs
    ]


def _video_json(
    job: GenerationJob, offer: catalog.Offer, queue_position: int | None, expected_seconds: int | None
) -> dict[str, Any]:
    status, node = STATUSES[State(job.state)], job.current_attempt.node if job.current_attempt else None
    percent = min(99, 100 * job.step // max(1, job.num_inference_steps))
    made_size = f"{job.width}x{job.height}" if job.width and job.height else ""
    return {
        "id": job.public_id,
        "object": "video",
        "status": status,
        "progress": 100 if job.state == State.COMPLETED else percent,
        "created_at": int(job.created_at.timestamp()),
        "completed_at": int(job.finished_at.timestamp()) if job.finished_at else None,
        "expires_at": None,
        "model": (node.backend if node else "") or job.model or offer.model,
        "prompt": job.prompt,
        "seconds": str(Preset(num_frames=job.num_frames, fps=job.fps).seconds),
        "size": made_size or job.size or offer.size,
        "error": {"code": job.error_code, "message": job.error_message} if status == "failed" else None,
        "remixed_from_video_id": fields.public_id(job.remixed_from_id) if job.remixed_from_id else None,
        "preset": job.preset.name,
        "seed": job.seed,
        "negative_prompt": job.negative_prompt,
        "cost": job.cost,
        "step": job.step,
        "steps": job.num_inference_steps,
        "queue_position": queue_position,
        "expected_seconds": expected_seconds,
        "source": job.source,
    }


class ModelSerializer(serializers.Serializer):
    """A backend that a GPU node runs, in OpenAI's shape of a model."""

    id = serializers.CharField()
    object = serializers.CharField(read_only=True)
    created = serializers.IntegerField(read_only=True, help_text="Unix time its first node was added.")
    owned_by = serializers.CharField(read_only=True)


def model_json(name: str, created: datetime) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created.timestamp()), "owned_by": "system"}


class PresetSerializer(serializers.Serializer):
    """A `Quote`: a preset with its price for the caller and its expected wait, before anything is submitted."""

    id = serializers.CharField(source="preset.name")
    object = serializers.CharField(read_only=True, default="preset")
    label = serializers.CharField(source="preset.label")  # type: ignore[assignment]
    seconds = serializers.CharField(read_only=True, source="preset.seconds")
    frames = serializers.IntegerField(source="preset.num_frames")
    fps = serializers.IntegerField(source="preset.fps")
    steps = serializers.IntegerField(source="preset.num_inference_steps")
    cost = serializers.IntegerField(help_text="Credits.")
    expected_seconds = serializers.IntegerField(help_text="From submit to clip without a queue.")
    default = serializers.BooleanField(source="preset.is_default")


def _list_of(name: str, item: type[serializers.Serializer], **fields: serializers.Field) -> Any:
    return inline_serializer(
        name, {"object": serializers.CharField(default="list"), "data": item(many=True), **fields}
    )


VideoList = _list_of(
    "VideoList",
    VideoSerializer,
    first_id=serializers.CharField(allow_null=True),
    last_id=serializers.CharField(allow_null=True, help_text="`after` of the next page."),
    has_more=serializers.BooleanField(),
)
ModelList = _list_of("ModelList", ModelSerializer)
PresetList = _list_of("PresetList", PresetSerializer)
DeletedVideo = inline_serializer(
    "DeletedVideo",
    {
        "id": serializers.CharField(),
        "object": serializers.CharField(default="video.deleted"),
        "deleted": serializers.BooleanField(),
    },
)
