"""Frozen weights in 4 bits."""

import torch


def nf4_layer(linear: torch.nn.Linear, compute_dtype: torch.dtype, device: torch.device) -> torch.nn.Linear:
    """The NF4 layer of a linear one, on `device` (arXiv 2305.14314).

    diffusers' own quantized loading refuses without a GPU; bitsandbytes itself does not. Leave the layer in
    training mode, as it is made: in evaluation, on a processor with bfloat16 instructions, its first pass
    packs the weight anew for good, for inference alone.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit  # slow to import, and not every run needs it

    quantized = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute_dtype,
        quant_type="nf4",
        device="meta",
    )
    # Its `__new__` takes these; ty looks at the `__init__` that it inherits.
    quantized.weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")  # ty: ignore[unknown-argument]
    quantized.bias = linear.bias
    return quantized.to(device)
