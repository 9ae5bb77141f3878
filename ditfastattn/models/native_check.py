"""Whether a model with DiT's parts also computes what DiT computes: its parts are run on small inputs, once."""

from typing import Any

import torch
from torch import Tensor

from ditfastattn.install import Overrides
from ditfastattn.models.agreement import agree, softmax_attention
from ditfastattn.models.base import PreparedBlock, PreparedModel


def block_disagreements(adapter: PreparedModel) -> list[str]:
    """Blocks whose attention, or whole, gives something else than the adapter makes of their parts.

    Every block is asked, on all tokens of two rows: what tells one layer from another (a window, a flag) may be an
    attribute that no structure shows. Together that takes about as long as two or three calls of the model.
    """
    found: dict[str, list[str]] = {}
    for index, block in enumerate(adapter.blocks):
        if fault := _fault(adapter, block):
            found.setdefault(fault, []).append(str(index))
    count = len(adapter.blocks)
    return [f if len(where) == count else f"{f} (blocks {', '.join(where)})" for f, where in found.items()]


def _fault(adapter: PreparedModel, block: PreparedBlock[Any]) -> str | None:
    """Attention is asked by itself too: in an untrained adaLN-Zero model every gate is zero and shuts it out."""
    module: Any = block.module
    x = _random(adapter, 2, adapter.spec().tokens, module.attn.proj.in_features)
    c = _random(adapter, 2, x.shape[2])
    try:
        attended, theirs = module.attn(x), module(x, c)
        ours = _whole(block, x, c)
    except Exception as error:  # whatever a module raises that is called as another
        return f"its {type(module).__name__} cannot be called as DiT's block(x, c) ({_line(error)})"
    q, k, v = module.attn.qkv(x).unflatten(2, (3, module.attn.num_heads, -1)).unbind(2)
    if not agree(block.project(softmax_attention(q, k, v)), attended):
        return f"its {type(module.attn).__name__} is more than qkv, softmax attention and proj"
    if not agree(ours, theirs):
        return f"its {type(module).__name__} computes something else than DiT's block with the same parts"
    return None


def end_disagreements(adapter: PreparedModel) -> list[str]:
    """Embedding, condition and head, which prepared steps run in the model's place: its own forward without blocks."""
    model, given = adapter.model, adapter.example(2, adapter.spec().tokens)
    conditions: list[Tensor] = []

    def skipped(x: Tensor, c: Tensor) -> Tensor:
        conditions.append(c)
        return x

    overrides = Overrides()
    for block in adapter.blocks:
        overrides.set(block.module, "forward", skipped)
    try:
        theirs = adapter.unwrap(model(*given.values()))
    except Exception as error:
        return [f"its forward cannot be called as DiT's forward(x, t, y) ({_line(error)})"]
    finally:
        overrides.restore()
    call = adapter.read_call(tuple(given.values()), {})
    ahead = adapter.conditioning(call.timestep[:1].float(), call)
    ours = adapter.head(adapter.embed(call.latents), ahead.head[0], *call.latents.shape[-2:])
    modules: list[Any] = [block.module for block in adapter.blocks]
    modulations = [m.adaLN_modulation(c).unflatten(1, (6, -1)) for m, c in zip(modules, conditions, strict=True)]
    if not agree(ours, theirs):
        return ["embedding and head of its forward are not DiT's, and prepared steps would run DiT's; do without them"]
    if not agree(ahead.blocks[0], torch.stack(modulations)):
        return ["its blocks are conditioned on something else than DiT's t_embedder(t) + y_embedder(y)"]
    return []


def _whole(block: PreparedBlock[Any], x: Tensor, c: Tensor) -> Tensor:
    state = block.begin(x, c, skip_attention=False)
    return block.finish(state, block.project(softmax_attention(*block.qkv(state, slice(None)))))


def _random(adapter: PreparedModel, *shape: int) -> Tensor:
    """The same at every call; the global generators are left alone."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values.to(adapter.device, adapter.dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
