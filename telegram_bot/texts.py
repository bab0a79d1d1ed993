"""Every word the bot says. Telegram's HTML: whatever a person wrote goes through `escaped`, never through Markdown."""

import html

from generation.errors import NOTHING_DEDUCTED, CooldownActive, GenerationError
from generation.models import GenerationJob
from generation.pricing import Quote

EXAMPLE = "A red fox running through fresh snow at sunrise"
BAR_CELLS = 10
# A caption may have 1024 characters; what stands around the prompt needs fewer than 200.
PROMPT_UNITS = 800
LINE_UNITS = 60

MARKS = {
    GenerationJob.State.QUEUED: "⏳",
    GenerationJob.State.RUNNING: "🎬",
    GenerationJob.State.STORING: "🎬",
    GenerationJob.State.COMPLETED: "✅",
    GenerationJob.State.FAILED: "❌",
    GenerationJob.State.CANCELED: "🚫",
}


def escaped(text: str) -> str:
    return html.escape(text, quote=False)


def shortened(text: str, units: int) -> str:
    """At most `units` UTF-16 code units, which is how Telegram counts."""
    encoded = text.encode("utf-16-le", "replace")
    if len(encoded) <= 2 * units:
        return text
    return encoded[: 2 * (units - 1)].decode("utf-16-le", "ignore") + "…"


def prompt_line(prompt: str) -> str:
    return f"Prompt: {escaped(shortened(prompt, PROMPT_UNITS))}"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


# --- Answers to commands ----------------------------------------------------------------------------------------------


def welcome(*, name: str, balance: int) -> str:
    return (
        f"👋 Welcome{', ' + escaped(name) if name else ''}!\n"
        "Describe a scene, and you get a video of it here.\n\n"
        f"💰 Balance: {plural(balance, 'credit')}\n\n"
        f"Try this:\n<code>/video {EXAMPLE}</code>\n\n"
        "/help shows all commands."
    )


def command_list(quote: Quote) -> str:
    return (
        "🤖 <b>Commands</b>\n\n"
        f"/video &lt;prompt&gt; - Generate AI video ({plural(quote.cost, 'credit')}, ~{quote.expected_seconds}s)\n"
        "/balance - Show your credits\n"
        "/history - Show your last videos\n"
        "/cancel - Cancel the video being made\n"
        "/help - Show this list"
    )


def video_usage(quote: Quote) -> str:
    return (
        "🎬 <b>Video Generation</b>\n\n"
        "Usage: <code>/video &lt;your prompt&gt;</code>\n"
        f"Example: <code>/video {EXAMPLE}</code>\n\n"
        f"💰 Cost: {plural(quote.cost, 'credit')}\n"
        f"⏱ Duration: ~{plural(quote.expected_seconds, 'second')}"
    )


def balance(*, free: int, held: int) -> str:
    lines = [f"💰 Balance: {plural(free, 'credit')}"]
    if held:
        lines.append(f"{plural(held, 'credit')} held for videos being made")
    return "\n".join(lines)


def history(jobs: list[GenerationJob]) -> str:
    if not jobs:
        return f"You have no videos yet. Try this:\n<code>/video {EXAMPLE}</code>"
    return "🎞 <b>Your last videos</b>\n\n" + "\n\n".join(history_line(job) for job in jobs)


def history_line(job: GenerationJob) -> str:
    state = GenerationJob.State(job.state)
    line = f"{MARKS[state]} {escaped(shortened(job.prompt, LINE_UNITS))}\n{state.label}"
    if state == GenerationJob.State.COMPLETED:
        return f"{line} · {plural(job.cost, 'credit')} · {job.created_at:%-d %b %Y, %H:%M} UTC"
    if state == GenerationJob.State.FAILED:
        return f"{line} · {escaped(job.error_message)}"
    if state == GenerationJob.State.RUNNING:
        return f"{line} · step {job.step} of {job.num_inference_steps}"
    return line


def canceled(prompt: str) -> str:
    return f"🚫 Video canceled\n{prompt_line(prompt)}\n{NOTHING_DEDUCTED}"


def nothing_to_cancel() -> str:
    return "There is nothing to cancel: no video of yours is being made."


def refusal(error: GenerationError) -> str:
    mark = "⏳" if isinstance(error, CooldownActive) else "❌"
    return f"{mark} {escaped(error.message)}"


def trouble() -> str:
    return "⚠️ Something went wrong here, and we were told. Please try again in a moment."


# --- The status message -----------------------------------------------------------------------------------------------


def generating(job: GenerationJob, *, expected_seconds: int, position: int | None = None) -> str:
    """`position` in line counts only while the job is queued; 1 is next."""
    lines = [
        "🎬 Generating video...",
        prompt_line(job.prompt),
        f"⏱ This takes ~{plural(expected_seconds, 'second')}. Please wait...",
    ]
    if stage := _stage(job, position):
        lines += ["", stage]
    return "\n".join(lines)


def _stage(job: GenerationJob, position: int | None) -> str:
    if job.state == GenerationJob.State.QUEUED and position is not None and position > 1:
        return f"⏳ {ordinal(position)} in line"
    if job.state == GenerationJob.State.RUNNING and job.step:
        return f"{_bar(job.step, job.num_inference_steps)} step {job.step} of {job.num_inference_steps}"
    if job.state == GenerationJob.State.STORING:
        return f"{_bar(1, 1)} almost done"
    return ""


def _bar(done: int, total: int) -> str:
    filled = min(BAR_CELLS, BAR_CELLS * done // max(1, total))
    return "▓" * filled + "░" * (BAR_CELLS - filled)


# --- The result -------------------------------------------------------------------------------------------------------


def _facts(job: GenerationJob, balance_left: int) -> list[str]:
    seconds = job.generation_ms / 1000 if job.generation_ms is not None else job.elapsed_seconds or 0.0
    return [prompt_line(job.prompt), f"Time: {seconds:.1f}s", f"Credits remaining: {balance_left}"]


def caption(job: GenerationJob, *, balance_left: int) -> str:
    return "\n".join(["✅ Video generated!", *_facts(job, balance_left)])


def link_instead(job: GenerationJob, *, balance_left: int, url: str) -> str:
    return "\n".join(
        [
            "✅ Video generated!",
            *_facts(job, balance_left),
            "",
            "It could not be sent as a file. Watch it here:",
            url,
        ]
    )


def failed(job: GenerationJob) -> str:
    lines = ["❌ Video generation failed", prompt_line(job.prompt), f"Error: {escaped(job.error_message)}"]
    if NOTHING_DEDUCTED not in job.error_message:  # some messages say it themselves
        lines.append(NOTHING_DEDUCTED)
    return "\n".join(lines)
