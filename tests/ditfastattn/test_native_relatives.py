"""Modules with the parts of facebookresearch/DiT that are not it: refused, or run by their own forward."""

from typing import Any

import pytest
import torch
from small_models import same
from small_native_dit import CLASSES, DiT, a_plan, attributes, small_native_dit
from torch import Tensor, nn

import ditfastattn
from ditfastattn.errors import ApplyError
from ditfastattn.models import adapt
from plans import Plan


@pytest.fixture
def native() -> Any:
    return small_native_dit()


class Doubled(DiT):
    """Its attention is not timm's."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        forward = type(self.blocks[0].attn).forward

        class DoublingAttention(type(self.blocks[0].attn)):  # type: ignore[misc]
            def forward(self, x: Tensor) -> Tensor:
                return forward(self, x * 2)

        for block in self.blocks:
            block.attn.__class__ = DoublingAttention


class Parallel(DiT):
    """Attention and MLP side by side."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)

        class ParallelBlock(type(self.blocks[0])):  # type: ignore[misc]
            def forward(self, x: Tensor, c: Tensor) -> Tensor:
                return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))

        for block in self.blocks:
            block.__class__ = ParallelBlock


class NoiseOnly(DiT):
    """Returns half of its channels."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, t, y)[:, :4]


class Elsewhere(DiT):
    """Conditioned on the timestep alone."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.final_layer(x, c + self.y_embedder(y, self.training)))


@pytest.mark.parametrize(
    ("relative", "words"), [(Doubled, "is more than qkv, softmax attention and proj"), (Parallel, "something else")]
)
def test_a_relative_with_another_block_is_refused(relative: type, words: str) -> None:
    model = small_native_dit(cls=relative)
    with pytest.raises(ApplyError, match=words):
        ditfastattn.apply(model, a_plan(small_native_dit()))
    assert "forward" not in model.blocks[0].__dict__


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_layer_that_differs_by_a_hidden_attribute_is_refused(layer: int) -> None:
    """Its structure, as ``repr`` shows it, is that of all others."""
    model = small_native_dit()
    attention = type(model.blocks[0].attn)

    class LocalAttention(attention):  # type: ignore[misc, valid-type]
        reach = 16

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(x.shape[1])
            seen = (places[:, None] - places).abs() <= self.reach
            q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            return self.proj(heads.transpose(1, 2).flatten(2))

    LocalAttention.__name__ = attention.__name__
    for block in model.blocks:
        block.attn.__class__ = LocalAttention
    ditfastattn.apply(model, a_plan(small_native_dit())).remove()
    model.blocks[layer].attn.reach = 2
    with pytest.raises(ApplyError, match=rf"is more than qkv, softmax attention and proj \(blocks {layer}\)"):
        ditfastattn.apply(model, a_plan(small_native_dit()))


@pytest.mark.filterwarnings("ignore:no CUDA graphs")
@pytest.mark.parametrize(
    ("relative", "words"), [(NoiseOnly, "embedding and head"), (Elsewhere, "conditioned on something else")]
)
def test_a_relative_with_other_ends_is_not_prepared(relative: type, words: str) -> None:
    """Eager steps run its own forward, so they are right; prepared steps would run DiT's."""
    model = small_native_dit(cls=relative)
    before = attributes(model)
    plan = a_plan(small_native_dit(), seed=None)
    with pytest.raises(ApplyError, match=words):
        ditfastattn.apply(model, plan, graphs=True)
    assert same(before, attributes(model))
    plain = sample_native_calls(model, plan)
    with ditfastattn.apply(model, plan):
        assert torch.equal(sample_native_calls(model, plan), plain)


@torch.no_grad()
def sample_native_calls(model: Any, plan: Plan) -> Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    y = torch.tensor([1, 2, CLASSES, CLASSES])
    return torch.stack([model(latents, torch.full((4,), int(t)), y) for t in plan.sampler.timesteps])


def test_a_wrapper_that_shows_its_models_parts_is_not_taken_for_it(native: Any) -> None:
    with pytest.raises(ApplyError, match=r"what torch\.compile\(\) returned: give apply\(\) the model inside"):
        ditfastattn.apply(torch.compile(native, backend="eager"), a_plan(native))

    class Wrapper(nn.Module):
        def __getattr__(self, name: str) -> Any:
            return getattr(native, name)

        def forward(self, *args: Any) -> Any:
            return native(*args)

    with pytest.raises(ApplyError, match=r"it lacks forward\(x, t, y\) to be"):
        adapt(Wrapper())


def test_a_module_without_dits_parts_is_told_what_it_lacks() -> None:
    model = small_native_dit()
    del model.t_embedder, model.blocks[0].attn.qkv
    with pytest.raises(
        ApplyError, match=r"it lacks t_embedder, blocks\.0\.attn\.qkv to be a facebookresearch/DiT; describe it with"
    ):
        adapt(model)
    with pytest.raises(ApplyError, match=r"none of DiTTransformer2DModel, PixArt.* and \d+ more to be"):
        adapt(nn.Linear(1, 1))
