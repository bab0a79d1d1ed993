"""The vocabulary of the demonstration model: words, captions, and the combinations kept for its examination."""

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB
    "red": (225, 45, 45),
    "orange": (245, 135, 25),
    "yellow": (248, 222, 55),
    "green": (60, 210, 80),
    "cyan": (40, 210, 220),
    "blue": (50, 85, 240),
    "purple": (145, 55, 200),
    "pink": (250, 135, 195),
}
SHAPES = ("ball", "square", "triangle", "star", "heart")
MOTIONS: dict[str, str] = {
    "right": "moving right",
    "left": "moving left",
    "up": "moving up",
    "down": "moving down",
    "growing": "growing",
    "shrinking": "shrinking",
    "turning": "turning",
    "bouncing": "bouncing",
}
BACKGROUNDS: dict[str, str] = {
    "black": "on a black background",
    "white": "on a white background",
    "sea": "over the sea",
    "meadow": "on a meadow",
    "desert": "in the desert",
    "night": "at night",
}
# A synonym is given the trained embedding of its word, so it costs no training and means exactly the same.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "yellow": ("golden", "gold"),
    "green": ("lime", "emerald"),
    "cyan": ("turquoise", "teal", "aqua"),
    "purple": ("violet", "lilac"),
    "pink": ("rose",),
    "ball": ("circle", "disc", "disk", "sphere", "balloon"),
    "square": ("box", "cube", "block"),
    "triangle": ("pyramid",),
    "moving": ("moves", "going", "goes", "flying", "flies", "gliding", "glides", "sliding", "slides"),
    "right": ("rightwards",),
    "left": ("leftwards",),
    "up": ("upwards", "rising", "rises"),
    "down": ("downwards", "falling", "falls", "sinking", "sinks"),
    "growing": ("grows", "expanding", "expands"),
    "shrinking": ("shrinks",),
    "turning": ("turns", "rotating", "rotates", "spinning", "spins"),
    "bouncing": ("bounces", "jumping", "jumps", "hopping", "hops"),
    "sea": ("ocean", "water", "waves"),
    "meadow": ("grass", "lawn", "field"),
    "desert": ("sand", "dunes"),
    "night": ("midnight",),
}
SMALL_WORDS = ("a", "an", "the", "on", "in", "at", "over", "above", "by", "background")
UNKNOWN = "something"  # any word outside the vocabulary reads the same to the model
MAX_TOKENS = 16

_ADJECTIVES = {"sea": "blue", "meadow": "green", "desert": "yellow", "night": "blue"}
_PREPOSITIONS = ("on", "in", "at", "over", "above", "by")


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One thing to show: keys of COLOURS, SHAPES, MOTIONS and BACKGROUNDS."""

    colour: str
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        """The plainest sentence for it: "a red ball moving right on a white background"."""
        article = "an" if self.colour == "orange" else "a"
        words = (article, self.colour, self.shape, MOTIONS[self.motion], BACKGROUNDS[self.background])
        return " ".join(words)

    @property
    def held_out(self) -> bool:
        """True for what training never sees; one in sixteen, spread so that every single word is trained."""
        colour = list(COLOURS).index(self.colour)
        shape = SHAPES.index(self.shape)
        motion = list(MOTIONS).index(self.motion)
        background = list(BACKGROUNDS).index(self.background)
        return (7 * colour + 3 * shape + 5 * motion + 11 * background) % 16 == 0


@lru_cache
def combinations() -> tuple[Combination, ...]:
    """Return every combination there is. A turning ball looks like one that stands still, so it is left out."""
    return tuple(
        Combination(colour=colour, shape=shape, motion=motion, background=background)
        for colour, shape, motion, background in product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
        if (shape, motion) != ("ball", "turning")
    )


def training_combinations() -> list[Combination]:
    """Return the combinations that training draws from."""
    return [combination for combination in combinations() if not combination.held_out]


def held_out_combinations() -> list[Combination]:
    """Return the combinations that the examination asks for."""
    return [combination for combination in combinations() if combination.held_out]


def words() -> list[str]:
    """Return every word of the vocabulary, the trained ones first."""
    trained = [*COLOURS, *SHAPES, "moving", *MOTIONS, *BACKGROUNDS, *SMALL_WORDS]
    return [*dict.fromkeys(trained), *(synonym for names in SYNONYMS.values() for synonym in names)]


def vary(combination: Combination, chance: random.Random) -> str:
    """Write a caption of the combination as people might put it; sometimes with words that mean nothing here."""
    parts = [
        chance.choice(("a", "a", "a", "an", "the", "")),
        combination.colour,
        combination.shape,
        combination.motion if chance.random() < 0.2 else MOTIONS[combination.motion],
        _background_words(combination.background, chance),
    ]
    for _ in range(chance.choice((0, 0, 0, 0, 1, 2))):
        parts.insert(chance.choice((0, 1, 3, 4, 5)), UNKNOWN)
    return " ".join(part for part in parts if part)


def _background_words(background: str, chance: random.Random) -> str:
    if chance.random() < 0.5:
        return BACKGROUNDS[background]
    article = chance.choice(("", "a", "the"))
    preposition = chance.choice(_PREPOSITIONS)
    if background in ("black", "white"):
        return f"{preposition} {article} {background} {chance.choice(('background', ''))}"
    adjective = _ADJECTIVES[background] if chance.random() < 0.4 else ""
    return f"{preposition} {article} {adjective} {background}"
