"""Embeddings of prompts, kept for the next clip with the same words."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from diffusers import CogVideoXPipeline

KEPT = 64  # prompts; 1.9 MB each for the 5B in 16 bits


@dataclass(frozen=True)
class Prompts:
    """Embeddings of shape (1, tokens, width of the text encoder), on the transformer's device: the 5B takes 226."""

    positive: torch.Tensor
    negative: torch.Tensor


class PromptEncoder:
    """The text encoder and its cache. Safe for a thread that works ahead of the GPU.

    There is no attention mask, so texts are always padded to the length that the model was trained with. The embedding
    of "", the negative prompt of nearly every clip, is never dropped.
    """

    def __init__(
        self,
        pipe: CogVideoXPipeline,
        *,
        tokens: int,
        runs_on: torch.device,
        goes_to: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._pipe = pipe
        self._tokens = tokens
        self._runs_on = runs_on
        self._goes_to = goes_to
        self._dtype = dtype
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def encode(self, prompt: str, negative_prompt: str) -> Prompts:
        """Return both embeddings."""
        return Prompts(positive=self._embedding(prompt), negative=self._embedding(negative_prompt))

    def _embedding(self, text: str) -> torch.Tensor:
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
            embedding = self._kept[text] = self._encode(text)
            if "" in self._kept:
                self._kept.move_to_end("")
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return embedding

    @torch.no_grad()
    def _encode(self, text: str) -> torch.Tensor:
        embedding, _ = self._pipe.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=self._tokens,
            device=self._runs_on,
            dtype=self._dtype,
        )
        on_the_gpu: torch.Tensor = embedding.to(self._goes_to)
        return on_the_gpu
