"""Compiling the transformer's repeated part, for the shapes that are warmed at start-up and no other.

`compile_repeated_blocks` of diffusers 0.42 raises for CogVideoX, which does not name its blocks; and it compiles the
whole call of a block, with whatever hooks of a step cache lie around it. Here only the forward method is compiled, so
that hooks added later stay outside. All blocks share one compiled graph for each shape.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import CogVideoXTransformer3DModel

log = logging.getLogger(__name__)

BLOCKS = ("CogVideoXBlock",)
# For step caches whose hooks sit on the attention inside a block.
PARTS = ("Attention", "FeedForward", "CogVideoXLayerNormZero")
MOST_SHAPES = 64  # graphs that Dynamo keeps of one function; its own limit is 8


def compile_forward(
    transformer: CogVideoXTransformer3DModel, *, names: tuple[str, ...] = BLOCKS, backend: str = "inductor"
) -> None:
    """Compile the modules of these class names at their first call, anew for every shape."""
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * MOST_SHAPES
    found = [module for module in transformer.transformer_blocks.modules() if type(module).__name__ in names]
    assert found, f"no module is one of {names}"
    for module in found:
        # Not `fullgraph`: where an attention kernel cannot be traced, the rest is compiled all the same.
        module.forward = torch.compile(module.forward, dynamic=False, backend=backend)
    log.info("%d of the transformer's modules are compiled at their first use", len(found))


@contextmanager
def new_shapes_compile() -> Iterator[None]:
    """Within, a shape that was not seen before is compiled, which takes minutes; outside, it runs as it is."""
    torch.compiler.set_stance("default")
    try:
        yield
    finally:
        torch.compiler.set_stance("eager_on_recompile")
