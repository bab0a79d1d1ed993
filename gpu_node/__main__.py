"""`python -m gpu_node`: serve until SIGTERM or Ctrl-C. With `--check [MODEL]`: report what this machine can run."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from concurrent.futures import Future
from types import FrameType

import uvicorn

from gpu_node.app import create_app
from gpu_node.node import Node
from gpu_node.settings import LOG_FORMAT, BadConfiguration, NodeSettings, load_settings

log = logging.getLogger("gpu_node")

BAD_CONFIGURATION = 2
# Longer than HTTP clients keep a connection, so that they never write into a closed one.
KEEP_ALIVE_SECONDS = 65
LAST_ANSWERS_SECONDS = 2  # for answers under way after the node has drained


class DrainingServer(uvicorn.Server):
    """Uvicorn, but a signal first drains the node, which still answers meanwhile; the exit status is then 0."""

    def __init__(self, config: uvicorn.Config, node: Node) -> None:
        super().__init__(config)
        self._node = node
        self._draining: Future[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal; a second Ctrl-C ends at once."""
        if self._draining is None:
            self._draining = asyncio.run_coroutine_threadsafe(self._drain_then_exit(), self._loop)
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    async def _drain_then_exit(self) -> None:
        try:
            await self._node.drain()
        finally:
            self.should_exit = True


def _serve(settings: NodeSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise BadConfiguration(f"GPU_NODE_PORT: cannot listen on {where}: {error.strerror}") from error
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        lifespan="on",
    )
    host, port = listener.getsockname()[:2]
    log.info("%s on http://%s:%d, clips in %s", settings.backend, host, port, settings.save_dir.absolute())
    DrainingServer(config, app.state.node).run(sockets=[listener])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_node", description="Make clips over HTTP.")
    parser.add_argument(
        "--check",
        nargs="?",
        const="",
        metavar="MODEL",
        help="say whether this card and this disk can run the model, and in which profile; download nothing",
    )
    return parser.parse_args()


def main() -> int:
    """Serve, or check. The exit status is 2 when the settings are wrong."""
    options = _options()
    os.umask(0o077)  # clips and prompts are for no other user of the machine
    if options.check is not None:
        command = [sys.executable, "-m", "gpu_node.check", *filter(None, [options.check])]
        os.execv(sys.executable, command)  # noqa: S606 - torch stays out of this process
    try:
        settings = load_settings()
        logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT)
        _serve(settings)
    except BadConfiguration as error:
        sys.stderr.write(f"gpu_node: {error}\n")
        return BAD_CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
