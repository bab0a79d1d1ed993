"""How long to wait before something is tried again."""

import random
from collections.abc import Iterator


def delay(failures: int, *, longest: float = 60.0) -> float:
    """Seconds after the given number of failures (1 is the first): 1, 2, 4 … `longest`, a fifth of it by chance."""
    return min(longest, 2.0 ** min(failures - 1, 16)) * random.uniform(0.9, 1.1)


def delays(*, longest: float = 60.0) -> Iterator[float]:
    """The delays one after the other, without end."""
    failures = 0
    while True:
        failures += 1
        yield delay(failures, longest=longest)
