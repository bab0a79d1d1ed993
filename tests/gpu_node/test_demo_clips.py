"""Words and pictures that the demonstration model learns from, and the scorer that names what it sees."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from benchmarks.demo_model import ATTRIBUTES, judge, prompts, real_clips
from benchmarks.demo_scorer import look
from gpu_node.demo_model import architecture, latents, vocabulary
from gpu_node.demo_model.renderer import FRAMES, HEIGHT, WIDTH, background_pictures, draw, scenes
from gpu_node.demo_model.vocabulary import (
    Combination,
    combinations,
    held_out_combinations,
    training_combinations,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, two threads that wait for each other take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clip_of(combination: Combination, seed: int = 0) -> torch.Tensor:
    return draw(scenes([combination], torch.Generator().manual_seed(seed)))[0]


def combination(**wanted: str) -> Combination:
    return Combination(**{"colour": "red", "shape": "star", "motion": "right", "background": "sea"} | wanted)


class TestWords:
    def test_each_is_one_token_and_capitals_and_strange_words_are_none_of_them(self) -> None:
        tokenizer = architecture.tokenizer()
        known = tokenizer(" ".join(vocabulary.words())).input_ids
        assert len(known) == len(vocabulary.words()) + 1, "one token a word, and the end"
        assert len(set(known)) == len(known)
        strange = set(tokenizer("unicorn Ämter 大").input_ids)
        assert tokenizer.unk_token_id in strange and not strange & set(known[:-1])

    def test_no_word_has_two_meanings(self) -> None:
        synonyms = [synonym for names in vocabulary.SYNONYMS.values() for synonym in names]
        assert len(set(synonyms)) == len(synonyms)
        assert len(set(vocabulary.words())) == len(vocabulary.words())
        assert set(vocabulary.SYNONYMS) <= set(vocabulary.words())

    def test_every_caption_fits_and_says_what_is_shown(self) -> None:
        tokenizer, chance = architecture.tokenizer(), random.Random(1)
        for item in chance.sample(combinations(), 300):
            caption = vocabulary.vary(item, chance)
            assert len(tokenizer(caption).input_ids) <= vocabulary.MAX_TOKENS
            assert {item.colour, item.shape, item.motion, item.background} <= set(caption.split())


class TestHeldOut:
    def test_training_never_sees_them(self) -> None:
        assert not set(held_out_combinations()) & set(training_combinations())
        assert len(held_out_combinations()) + len(training_combinations()) == len(combinations())
        assert set(prompts(300)) == set(held_out_combinations())

    @pytest.mark.parametrize("attribute", ATTRIBUTES)
    def test_every_single_word_is_trained_and_examined(self, attribute: str) -> None:
        words = {getattr(item, attribute) for item in combinations()}
        assert {getattr(item, attribute) for item in training_combinations()} == words
        assert {getattr(item, attribute) for item in held_out_combinations()} == words


class TestClips:
    def test_the_same_seed_draws_the_same_clip_another_seed_another(self) -> None:
        clip = clip_of(combination())
        assert clip.shape == (3, FRAMES, HEIGHT, WIDTH)
        assert clip.min() >= 0 and clip.max() <= 1
        assert torch.equal(clip, clip_of(combination()))
        assert not torch.equal(clip, clip_of(combination(), seed=1))

    @pytest.mark.parametrize(("frames", "count"), [(FRAMES, 40), (49, 16)])
    def test_the_scorer_names_what_is_drawn(self, frames: int, count: int) -> None:
        tally = Counter[str]()
        for wanted, clip in real_clips(count, frames=frames):
            assert clip.shape == (3, frames, HEIGHT, WIDTH)
            tally.update(judge(wanted, clip))
        assert tally == dict.fromkeys((*ATTRIBUTES, "all four", "clips"), count)

    def test_the_scorer_sees_no_object_where_there_is_none_and_no_motion_in_a_still(self) -> None:
        empty = background_pictures()[2][:, None].expand(3, FRAMES, HEIGHT, WIDTH)
        assert (look(empty).shape, look(empty).motion, look(empty).background) == (None, None, "sea")
        still = clip_of(combination(motion="growing"))[:, 8:9].expand(3, FRAMES, HEIGHT, WIDTH)
        assert (look(still).shape, look(still).motion) == ("star", None)

    def test_a_longer_clip_goes_the_same_way_more_slowly_and_turns_on_at_the_same_speed(self) -> None:
        wanted = [combination(motion="right"), combination(motion="turning")]
        short, long = (
            scenes(wanted, torch.Generator().manual_seed(0), frames=frames) for frames in (FRAMES, 49)
        )
        torch.testing.assert_close(long.centre[0, ::3], short.centre[0])
        torch.testing.assert_close(long.angle[1, :FRAMES], short.angle[1])

    @pytest.mark.parametrize("frames", [FRAMES, 49])
    def test_latents_say_where_the_object_is(self, frames: int) -> None:
        scene = scenes([combination(motion="right")], torch.Generator().manual_seed(0), frames=frames)
        near = latents.nearness(latents.draw_latents(scene))[0, :, 0]
        columns = torch.arange(latents.LATENT_WIDTH) * latents.CELL + latents.CELL / 2
        middle = (near.sum(1) * columns).sum(1) / near.sum((1, 2))
        assert (middle - scene.centre[0, ::4, 0]).abs().max() < latents.CELL
