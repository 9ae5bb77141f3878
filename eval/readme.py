"""Result tables of README.md, written from the committed files in eval/results.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; nothing else of the page is touched.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditfastattn.errors import DitFastAttnError
from ditfastattn.layout import Layout
from ditfastattn.models import REGISTRY, DescribedModel
from ditfastattn.models.base import ModelAdapter, PreparedModel
from eval import pareto_table
from eval.arguments.readme import parser
from eval.record import source_line
from plans.files import write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "eval" / "results"


def demo_thresholds() -> str:
    file = "eval/results/demo_thresholds.json"
    result = json.loads((ROOT / file).read_text())
    lines = [
        "| threshold | attention MACs | latents rel. L2 | PSNR | SSIM | on other noise |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['threshold']} | {row['attention_macs']:.1f} % | {row['latent_rel_l2']:.3f} | {row['psnr']:.1f} dB "
            f"| {row['ssim']:.3f} | {row['unseen_psnr']:.1f} dB |"
        )
    return "\n".join([*lines, "", source_line(result, file)])


def demo_clips(file: str = "eval/results/demo_clips.json") -> str:
    """Plans of the small Open-Sora: MACs in all and at each site, distances on captions not calibrated on."""
    result = json.loads((ROOT / file).read_text())
    lines = [
        "| threshold | attention MACs | between tokens | between frames | latents rel. L2 | PSNR | SSIM |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['threshold']:g} | {row['attention_macs']:.1f} % | {row['sites']['attn']:.1f} % "
            f"| {row['sites']['temporal']:.1f} % | {row['latent_rel_l2']:.3f} | {_decibels(row)} | {row['ssim']:.3f} |"
        )
    return "\n".join([*lines, "", source_line(result, file)])


def demo_quality() -> str:
    file = "eval/results/demo_quality.json"
    result = json.loads((ROOT / file).read_text())
    lines = ["| Fréchet distance, EfficientNet-Lite0 features (not FID) | distance | images |", "|---|---|---|"]
    for name, row in result["distances"].items():
        lines.append(f"| {name} | {row['distance']:.1f} | {row['count_a']:,} / {row['count_b']:,} |")
    return "\n".join([*lines, "", source_line(result, file)])


def kernels() -> str:
    """Window + residual (a WA_RS step), N/8 keys on each side, bf16: ours beside the fastest library with an add."""
    file = "eval/results/kernels.json"
    result = json.loads((ROOT / file).read_text())
    lines = [
        "| (B, H, N, D) | window | SDPA, full | fastest library, window + add | ours, window + residual | ratio |",
        "|---|---|---|---|---|---|",
    ]
    rows = [row for row in result["rows"] if row["dtype"] == "bf16"]
    for shape in dict.fromkeys(tuple(row["shape"]) for row in rows):
        here = [row for row in rows if tuple(row["shape"]) == shape]
        full = next(row["us"] for row in here if row["op"] == "full" and row["kernel"] == "sdpa")
        side = shape[2] // 8
        steps = {
            row["kernel"]: row["us"] for row in here if row["op"] == "window + residual" and row["window"][0] == side
        }
        ours = steps.pop("triton")
        library = min(steps, key=lambda name: steps[name])
        lines.append(
            f"| {shape} | {side} | {full:,.0f} us | {steps[library]:,.0f} us ({library}) | {ours:,.0f} us "
            f"| {ours / steps[library]:.2f} x |"
        )
    return "\n".join([*lines, "", source_line(result, file)])


def xformers() -> str:
    """Seconds of a whole run and milliseconds of a call by each attention, with the speed-up over materialised."""
    file = "eval/results/xformers.json"
    result = json.loads((ROOT / file).read_text())
    names = list(dict.fromkeys(row["variant"] for row in result["rows"] if row["equivalent"]))
    lines = [f"| | images | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for key in dict.fromkeys((row["model"], row["what"], row["images"]) for row in result["rows"]):
        here = {r["variant"]: r for r in result["rows"] if (r["model"], r["what"], r["images"]) == key}
        model, what, images = key
        times = [
            (f"{here[n]['seconds']:.1f} s" if what == "run" else f"{1000 * here[n]['seconds']:.1f} ms")
            + f" ({here[n]['speedup']:.2f} x)"
            for n in names
        ]
        lines.append(f"| {model}, one {what} | {images} | {' | '.join(times)} |")
    weights = f"{result['weights'].capitalize()} weights, {result['dtype']}, eager. "
    return "\n".join([*lines, "", weights + result["claim"], "", source_line(result, file)])


def agreement() -> str:
    """The demo by every kernel, and what the dtype alone does to the reference."""
    file = "eval/results/agreement.json"
    result = json.loads((ROOT / file).read_text())
    dtypes = list(dict.fromkeys(row["dtype"] for row in result["rows"]))
    lines = ["| kernel, against the reference | " + " | ".join(dtypes) + " |", "|---" * (len(dtypes) + 1) + "|"]
    for kernel in dict.fromkeys(row["kernel"] for row in result["rows"]):
        found = {row["dtype"]: row for row in result["rows"] if row["kernel"] == kernel}
        name = "sdpa, against sdpa in fp32: the yardstick" if kernel == "sdpa" else kernel
        lines.append(f"| {name} | " + " | ".join(_decibels(found.get(dtype)) for dtype in dtypes) + " |")
    return "\n".join([*lines, "", source_line(result, file)])


def _decibels(row: dict[str, Any] | None) -> str:
    if row is None:
        return "left out"
    return "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"


def latency() -> str:
    """A transformer call's time with plans and without, by model and batch."""
    file = "eval/results/latency.json"
    results = json.loads((ROOT / file).read_text())
    lines = ["| model, batch | | attention MACs | ms a step | over compiled + graph | with the VAE |", "|---" * 6 + "|"]
    for result in results:
        rows = result["rows"]
        base = next((row["ms_per_step"] for row in rows if row["variant"] == "compiled + graph"), None)
        for row in rows:
            ratio = "" if base is None else f"{base / row['ms_per_step']:.2f} x"
            lines.append(
                f"| {result['model']}, {result['batch']} | {row['variant']} | {row['attention_macs']:.0f} % "
                f"| {row['ms_per_step']:.2f} | {ratio} | {row['pipeline_s']:.2f} s |"
            )
    sources = dict.fromkeys(source_line(result, file) for result in results)
    return "\n".join([*lines, "", *sources])


def families() -> str:
    """A line for each family: an eager transformer call's time, and the memory of caches beside its prediction."""
    file = "eval/results/families.json"
    if not (ROOT / file).exists():
        return "Not measured yet: `python -m eval families`."
    results = json.loads((ROOT / file).read_text())
    lines = [
        "| model | batch | no plan | all FULL | plans, at their share of attention MACs | windows by "
        "| caches, predicted and measured |",
        "|---" * 7 + "|",
    ]
    for result in results:
        base, full, *planned = result["rows"]
        slow = base["ms_per_step"]
        times = ", ".join(
            f"{row['attention_macs']:.0f} %: {row['ms_per_step']:.1f} ({slow / row['ms_per_step']:.2f} x)"
            for row in planned
        )
        last = planned[-1]
        lines.append(
            f"| {result['model']} | {result['batch']} | {slow:.1f} ms | {full['ms_per_step']:.1f} | {times} "
            f"| {_kernels(last['kernels'])} | {_mebibytes(last['cache_predicted'])}, "
            f"{_mebibytes(last['cache_measured'])} |"
        )
    lines += ["", f"Milliseconds a step, {results[0]['dtype']}; {results[0]['what']}. The caches are the last plan's."]
    return "\n".join([*lines, source_line(results[-1], file)])


def _kernels(reports: dict[str, str]) -> str:
    """Their names, by site where there are several; a report begins with the name."""
    names = {site: report.split()[0] for site, report in reports.items()}
    return ", ".join(f"{site} {name}" if len(names) > 1 else name for site, name in names.items())


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.1f} MiB"


def token_order() -> str:
    """Loss of a WA-RS step with the last step's residual, by window, and MACs of calibrated plans, by threshold."""
    file = "eval/results/token_order.json"
    result = json.loads((ROOT / file).read_text())
    windows = sorted({row["window"] for row in result["rows"]}, reverse=True)
    thresholds = sorted({row["threshold"] for row in result["calibrated"]})
    heads = [f"loss, window {window}" for window in windows] + [f"MACs at {value:g}" for value in thresholds]
    lines = ["| order | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for order in dict.fromkeys(row["order"] for row in result["rows"]):
        here = [row for row in result["rows"] if row["order"] == order and row["residual_age"] == 1]
        mean = {row["window"]: row["mean"] for row in here}
        macs = {row["threshold"]: row["attention_macs"] for row in result["calibrated"] if row["order"] == order}
        cells = [f"{mean[window]:.4f}" for window in windows]
        cells += [f"{macs[value]:.1f} %" if value in macs else "" for value in thresholds]
        lines.append(f"| {order} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", source_line(result, file)])


def drift() -> str:
    """Both losses and the budgets by attention MACs, then what budgets came to on what was not calibrated on."""
    files = ("eval/results/drift.json", "eval/results/drift-demo-long.json")
    results = [json.loads((ROOT / file).read_text()) for file in files]
    names = [result["model"] for result in results]
    heads = [
        f"{name}: attention MACs | PSNR to {r['reference_steps']} steps" for name, r in zip(names, results, strict=True)
    ]
    lines = [f"| search | {' | '.join(heads)} |", "|---" * (1 + 2 * len(results)) + "|"]
    for rows in zip(*(result["rows"] for result in results), strict=True):
        row = rows[0]
        name = f"`--drift {row['threshold']:g}`" if row["loss"] == "within" else f"{row['loss']} {row['threshold']:g}"
        cells = [f"{row['macs']:.1f} % | {row['psnr']:.1f} dB" for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    tests = list(results[0]["budgets"][0]["tests"])
    lines += ["", f"| drift asked for | predicted | {' | '.join(tests)} |", "|---" * (2 + len(tests)) + "|"]
    for name, result in zip(names, results, strict=True):
        for row in result["budgets"]:
            cells = [f"{test['mean']:.3f}, {test['within']} of {test['of']} within" for test in row["tests"].values()]
            lines.append(f"| {row['asked']:g}, {name} | {row['predicted']:.3f} | {' | '.join(cells)} |")
    sources = [source_line(result, file) for file, result in zip(files, results, strict=True)]
    return "\n".join([*lines, "", sources[0], "", sources[1]])


def pareto() -> str:
    """The best of ours at a few speedups, beside the best others that are as fast."""
    file = "eval/results/pareto.json"
    return "\n".join(pareto_table.images(json.loads((ROOT / file).read_text()), file))


def pareto_distances() -> str:
    """Frechet distances of the same ways."""
    file = "eval/results/pareto.json"
    return "\n".join(pareto_table.distances(json.loads((ROOT / file).read_text()), file))


def pareto_speed() -> str:
    """MACs and speed-ups of all ways on geometries with random weights."""
    file = "eval/results/pareto.json"
    return "\n".join(pareto_table.speed(json.loads((ROOT / file).read_text()), file))


def models() -> str:
    """What plans can be applied to, from the registry."""
    lines = ["| transformer | as in | a guided batch | eager | prepared | calibration |", "|---" * 6 + "|"]
    orders = {Layout.COND_FIRST: "[cond, uncond]", Layout.UNCOND_FIRST: "[uncond, cond]"}
    for family in REGISTRY.built_in:
        adapter = family.adapter
        assert isinstance(adapter, type) and issubclass(adapter, ModelAdapter)
        prepared = "yes" if issubclass(adapter, PreparedModel) else "no"
        lines.append(
            f"| {family.name} | {family.loaded_by} | {orders[adapter.guided_layout]} | yes | {prepared} "
            f"| {family.calibration} |"
        )
    own = "yes" if issubclass(DescribedModel, PreparedModel) else "no"
    lines.append(
        f"| your own, after `ditfastattn.register` | your program | as you say | yes | {own} | of a `Condition` |"
    )
    return "\n".join(lines)


TABLES = {
    "models": models,
    "kernels": kernels,
    "latency": latency,
    "families": families,
    "agreement": agreement,
    "xformers": xformers,
    "token_order": token_order,
    "drift": drift,
    "pareto": pareto,
    "pareto_distances": pareto_distances,
    "pareto_speed": pareto_speed,
    "demo_thresholds": demo_thresholds,
    "demo_clips": demo_clips,
    "demo_quality": demo_quality,
}


def render(page: str) -> str:
    """The page with every table written anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> None:
    parser().parse_args(argv)
    path = ROOT / "README.md"
    if not path.exists() or not RESULTS.exists():
        raise DitFastAttnError("this works in a checkout of the project, where README.md and eval/results are")
    page = render(path.read_text())
    write_text(path, page)
