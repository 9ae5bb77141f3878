"""A model made ready for trials: its blocks, kernels and token order behind a probe."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from calibration.blocks import Blocks, EagerBlocks, PieceBlocks
from calibration.probe import Probe
from calibration.settings import Settings
from ditfastattn.batch import like_queries
from ditfastattn.execute import Context, Contexts
from ditfastattn.kernels import make_kernel, settled
from ditfastattn.layout import Layout
from ditfastattn.models.base import Call, ModelAdapter, prepared
from ditfastattn.order import Ordering, order_for
from ditfastattn.pieces import compiled_pieces
from ditfastattn.ranks import Ranks
from plans import Plan


@contextmanager
def bench(adapter: ModelAdapter, plan: Plan, call: Call, settings: Settings, ranks: Ranks) -> Iterator[Probe]:
    """A probe on the model's blocks, taken off at the end of the ``with``.

    Args:
        call: a model call of the run; its latents, whose values do not matter, are those of the whole batch.
    """
    candidates, latents = settings.candidates(), call.latents
    contexts = _contexts(adapter, plan, latents, settings.kernel, ranks)
    ordering = Ordering(order_for(plan.token_order, candidates), plan.window, adapter.per_image)
    ordering.fit(adapter.grid(*latents.shape[-2:]), latents.device)
    blocks: Blocks = EagerBlocks(adapter, contexts)
    if settings.compile:
        blocks = PieceBlocks(prepared(adapter), contexts, compiled_pieces(), call)
    with Probe(adapter, contexts, ordering, any(method.windowed for method in candidates), blocks) as probe:
        yield probe


def _contexts(adapter: ModelAdapter, plan: Plan, latents: Tensor, kernel: str, ranks: Ranks) -> Contexts:
    """Kernel and window of every site."""
    found = {}
    for site in plan.sites:
        queries, window = like_queries(plan, site, latents, adapter.dtype), plan.window_of(site)
        # What one rank has measured, all use.
        name = ranks.broadcast(settled(kernel, queries, window) if ranks.first else "")
        found[site] = Context(make_kernel(name, queries, window), window, Layout(plan.guidance.layout))
    return found
