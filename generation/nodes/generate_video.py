"""The `/generate_video` protocol of the nodes in the field: one long POST, then the file by its name."""

from __future__ import annotations

from generation.nodes import protocol
from generation.nodes.client import HEALTH_TIMEOUT, NodeClient
from generation.nodes.protocol import GenerationRequest, NodeHealth, RemoteJob
from generation.nodes.transport import Answer, Transport


class GenerateVideoClient(NodeClient):
    """Speaks `GET /health`, `POST /generate_video` and `GET /get_video/{name}`, and nothing else."""

    protocol = "generate_video"
    route = "/generate_video"
    background = False

    @classmethod
    async def is_spoken(cls, transport: Transport) -> bool:
        """Ask for the route, then for the health: a node may answer 404 to a GET of its only POST route."""
        if await super().is_spoken(transport):
            return True
        answer = await transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
        try:
            return answer.status == 200 and isinstance(answer.json_object().get("status"), str)
        except protocol.NodeAnsweredNonsense:
            return False

    async def health(self) -> NodeHealth:
        answer = await self.transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
        if answer.status != 200:
            raise self.transport.refuse(answer)
        return protocol.node_health(answer.json_object(), self.protocol)

    async def generate(self, request: GenerationRequest, *, timeout: float = 90.0) -> RemoteJob:
        """Run the job within one request.

        NodeTimeout says nothing about the clip: the node may still be at it, and cannot be asked. A failure
        that the node reports itself is a RemoteJob with state "failed", not an error.
        """
        body = {
            "prompt": request.prompt,
            "frames": request.num_frames,
            "fps": request.fps,
            "steps": request.num_inference_steps,
        }
        answer = await self.transport.call("POST", self.route, json_body=body, timeout=timeout)
        if answer.status in (404, 405):
            raise protocol.NodeHasNoRoute(f"The node has no {self.route}.")
        if answer.status != 200:
            raise self.transport.refuse(answer)
        return self._outcome(answer)

    def _outcome(self, answer: Answer) -> RemoteJob:
        body = answer.json_object()
        status = protocol.word(body.get("status"))
        if status == "error":
            said = protocol.text(body.get("error")) or "The node gave no reason."
            return RemoteJob(state="failed", error=self.transport.clean(said))
        if status != "ok":
            raise protocol.NodeAnsweredNonsense("The node answered with neither ok nor error.")
        return RemoteJob(
            state="completed",
            progress=100,
            file_name=protocol.file_name(body.get("video_path")),
            generation_ms=protocol.whole_number(body.get("generation_time_ms")),
        )

    def content_path(self, job: RemoteJob) -> str:
        return f"/get_video/{protocol.file_name(job.file_name)}"
