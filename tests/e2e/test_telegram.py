"""The bot as one program of `make run`: from a prompt in a chat to the video that our own GPU node made."""

import time
from pathlib import Path

import pytest

from tests.bot_api_server import BotApiServer
from tests.clips import facts_of
from tests.processes import wait_for
from tests.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ADA = 77
STEPS = "SELECT 1 FROM generation_generationjob WHERE prompt = 'a red fox in the snow' AND step > 0"


def set_steps(stack: Stack, steps: int) -> None:
    stack.sql("UPDATE generation_preset SET num_inference_steps = %s WHERE name = 'quick'", steps)


def test_a_prompt_in_a_chat_comes_back_as_a_playable_video(
    stack: Stack, telegram: BotApiServer, tmp_path: Path
):
    [(steps,)] = stack.sql("SELECT num_inference_steps FROM generation_preset WHERE name = 'quick'")
    set_steps(stack, 100)
    with stack.node_held_up():
        telegram.say("/video a red fox in the snow", sender=ADA)
        status = wait_for(lambda: telegram.shown(ADA), message="the bot does not answer")[0]
        set_steps(stack, steps)
        assert status.text.startswith("🎬 Generating video...\nPrompt: a red fox in the snow\n")
    # A little at a time: the message changes every other second at most, and the clip may be made in less.
    while not stack.sql(STEPS):
        time.sleep(0.05)
        with stack.node_held_up():
            time.sleep(0.3)
    with stack.node_held_up():
        wait_for(lambda: any("step" in text for text in status.texts), message=f"no step in {status.texts}")
    video = wait_for(
        lambda: [message for message in telegram.shown(ADA) if message.video],
        seconds=180,
        message=f"no video came; the chat shows {[message.text for message in telegram.shown(ADA)]}",
    )[0]
    wait_for(lambda: status.deleted)
    stack.manage("audit_credits")
    assert video.text.startswith("✅ Video generated!\nPrompt: a red fox in the snow\nTime: ")
    assert video.text.endswith("s\nCredits remaining: 450")
    file = tmp_path / "video.mp4"
    file.write_bytes(video.video or b"")
    facts = facts_of(file)
    assert (facts.codec, facts.frames, facts.fps) == ("h264", 16, 8)
