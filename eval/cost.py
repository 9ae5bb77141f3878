"""``python -m eval cost``: what everything that a plan decides costs, by formula and measured on the model itself.

The measured tables stay on disk (``ditfastattn.cost``); from then on calibration says how long a run of a plan will
take on this device, and ``--plan`` says it here. ``--check`` compares what tables say with runs.
"""

from collections.abc import Iterator, Sequence

import torch

from ditfastattn.cost import EAGER, CostTable, LayerShape, layer_work, measured, plan_time, runtimes_on
from ditfastattn.cost.predict import check_measured
from ditfastattn.cost.rows import cells_of, row_of
from ditfastattn.errors import DitFastAttnError
from ditfastattn.execute import Context
from ditfastattn.kernels import make_kernel
from ditfastattn.models import adapt
from ditfastattn.models.base import PreparedModel, prepared
from ditfastattn.ranks import ALONE
from eval import cost_check
from eval.arguments.cost import parser
from eval.cost_plot import plot
from eval.geometry import build
from eval.record import command_line
from plans import Plan, Window, load
from plans.site import methods_of


def context_of(adapter: PreparedModel, batch: int, window: Window, kernel: str) -> Context:
    """Kernel, window and guidance for a call of ``batch`` rows."""
    spec = adapter.spec()
    sample = next(adapter.model.parameters()).new_empty((batch, spec.tokens, spec.heads, spec.head_dim))
    return Context(make_kernel(kernel, sample, window), window, adapter.guided_layout)


def measure(
    adapter: PreparedModel, batch: int, context: Context, refresh: bool, runtimes: Sequence[str]
) -> Iterator[CostTable]:
    """One table per way of running the model."""
    for runtime in runtimes:
        if runtime != EAGER:
            torch._dynamo.reset()  # pieces compiled for another batch count against its limit
        yield measured(adapter, batch, runtime, context.kernel, window=context.window, refresh=refresh)


def show(adapter: PreparedModel, tables: Sequence[CostTable]) -> str:
    """One line a row: of attention MACs in both conventions and bytes, and microseconds by each runtime.

    Of a block's row those of one whole block. Below, how far sums of cells are from pairs that were measured, and the
    methods that are slower than FULL here.
    """
    key, spec = tables[0].key, adapter.spec()
    shape = LayerShape(key.batch, key.tokens, spec.heads, spec.head_dim)
    itemsize = next(adapter.model.parameters()).element_size()
    window = Window.parse(key.window)
    work = {}
    for cell in cells_of("attn", adapter.guided_layout):
        module, core = (layer_work(cell, shape, window, itemsize, convention) for convention in ("module", "core"))
        work[row_of("attn", cell)] = f"{module.macs / 1e9:>16.3f}{core.macs / 1e9:>11.3f}{module.bytes / 1e6:>10.2f}"
    lines = [
        f"{key.model}, {key.batch} rows of {key.tokens} tokens, {key.heads} heads of {key.head_dim}, {key.dtype}, "
        f"window {key.window}, kernel {key.kernel}, on {key.device}",
        f"{'':<24}{'attention GMACs':>16}{'core only':>11}{'MB moved':>10}"
        + "".join(f"{'us, ' + table.key.runtime:>27}" for table in tables),
    ]
    for name in dict.fromkeys(name for table in tables for name in table.microseconds):
        times = [table.microseconds.get(name) for table in tables]
        lines.append(
            f"{name:<24}{work.get(name, ''):<37}" + "".join(f"{'' if us is None else f'{us:.1f}':>27}" for us in times)
        )
    return "\n".join([*lines, *(line for table in tables for line in _remarks(table))])


def _remarks(table: CostTable) -> list[str]:
    """How far sums are off, and what is slower than FULL."""
    name, lines = table.key.runtime, []
    if errors := table.pair_errors():
        found = "; ".join(f"{pair}: {error:+.1%}" for pair, error in errors.items())
        lines.append(f"{name}: sums of cells against pairs: {found}")
    for site in table.sites:
        slower = [method for method in methods_of(site) if method not in table.never_slower(site)]
        if slower:
            lines.append(f"{name}: slower than FULL in {site}: {', '.join(slower)}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    options.device = ALONE.device(options.device)
    if min(options.images) < 1:
        raise DitFastAttnError(f"--images must be at least 1, got {min(options.images)}")
    if options.steps < 4 or options.repeats < 1:
        raise DitFastAttnError("--check needs at least 4 steps and 1 repeat")
    on_gpu = options.device.startswith("cuda")
    dtype = getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32"))
    plan: Plan | None = load(options.plan) if options.plan else None
    if plan is not None:
        check_measured(plan.model)
    adapter = prepared(adapt(build(options.model, options.device, dtype).pipe.transformer))
    try:
        window = Window.parse(options.window) if options.window else None
    except ValueError as error:
        raise DitFastAttnError(str(error)) from None
    window = window or (plan.window if plan else Window.default(adapter.spec().tokens))
    runtimes = (EAGER,) if options.eager else runtimes_on(adapter.device)
    if options.check:
        runtimes = runtimes[-1:]
    for images in options.images:
        context = context_of(adapter, 2 * images, window, options.kernel)
        tables = list(measure(adapter, 2 * images, context, options.refresh, runtimes))
        print(show(adapter, tables), flush=True)
        for table in tables if plan else []:
            assert plan is not None
            print(f"predicted run time of {options.plan.name}: {plan_time(plan, table)}")
        if options.plot:
            plot(tables, options.plot)
        if options.check:
            cost_check.main(adapter, tables[-1], context, options, command_line("cost", argv, ("--out", "--plot")))
        print()
