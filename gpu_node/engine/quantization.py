"""Linear layers with 8-bit weights: `fp8` for speed, on cards whose matrix units take it, `int8` for memory."""

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import nn
from torch.nn import functional

from gpu_node.engine.errors import ModelUnavailable

FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


class Float8Linear(nn.Module):
    """Weights and activations in 8-bit floats, each row with a scale of its own; sums in float32.

    The activations only where it is compiled: turning them into 8 bits kernel by kernel takes longer than it saves.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _rowwise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → (…, outputs), in the dtype of the inputs."""
        if not torch.compiler.is_compiling():
            weight = (self.weight.to(self.scale.dtype) * self.scale).to(inputs.dtype)
            return functional.linear(inputs, weight, self.bias)
        rows, scale = _rowwise(inputs.flatten(0, -2))
        out = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        out = out if self.bias is None else out + self.bias
        return out.to(inputs.dtype).reshape(*inputs.shape[:-1], -1)


class Int8Linear(nn.Module):
    """Weights as 8-bit integers with a scale for each output; the arithmetic stays that of the inputs."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1, keepdim=True).float().clamp_min(SMALLEST_SCALE) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.squeeze(1).to(weight.dtype))
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → (…, outputs)."""
        out = functional.linear(inputs, self.weight.to(inputs.dtype)) * self.scale
        return out if self.bias is None else out + self.bias


def _rowwise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, width) → the same in 8-bit floats, and the scales, (count, 1)."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(SMALLEST_SCALE) / FP8_LARGEST
    return (rows / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8), scale


def quantize(transformer: CogVideoXTransformer3DModel, kind: str) -> None:
    """Replace the linear layers of attention and feed-forward, nearly all of the arithmetic and of the weights.

    `kind`: fp8 or int8. What modulates and normalises stays as it is: it is small, and errors there show.
    """
    layer = {"fp8": Float8Linear, "int8": Int8Linear}[kind]
    for block in transformer.transformer_blocks:
        for part in (block.attn1, block.ff):
            for module in list(part.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(module, name, layer(child))


def check_hardware(kind: str, device: torch.device) -> None:
    """Raise ModelUnavailable for fp8 where the hardware has no matrix units for 8-bit floats."""
    if kind != "fp8":
        return
    if device.type != "cuda":
        raise ModelUnavailable(
            "fp8 needs a CUDA GPU; this node runs on the CPU. Use GPU_NODE_QUANTIZATION=none."
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ModelUnavailable(
            f"fp8 needs compute capability 8.9 (Ada, Hopper or newer); {name} has {capability[0]}.{capability[1]}. "
            "Use GPU_NODE_QUANTIZATION=none, or another profile."
        )
