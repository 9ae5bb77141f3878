"""The command line of ``python -m calibration``."""

import argparse
from collections.abc import Sequence

from calibration.errors import CalibrationError
from calibration.loss import DRIFT, LOSS_NAMES
from calibration.run_arguments import add_run
from calibration.settings import CANDIDATES, SEARCHES, THRESHOLDS
from ditfastattn.console import Parser
from ditfastattn.kernel_names import NAMES
from plans import Method, Window
from plans.method import PAPER, TOKEN_ORDERS

ADVISED = ["1.2", "1.5", "2", "2.5"]  # speedups
EXAMPLES = """examples:
  python -m calibration --threshold 0.05                      the bundled demo, 50 DPM-Solver++ steps
  python -m calibration --model demo-long --threshold 0.05    the one of 1,024 tokens, where attention dominates
  python -m calibration --threshold D1 D3 D6 --output runs    three plans and a summary in runs/
  python -m calibration --model facebook/DiT-XL-2-512 --threshold D2 --device cuda --dtype float16
  python -m calibration --drift 0.1                           the final latents within 10 % (relative L2) on other noise
  python -m calibration --threshold 0.02 --loss drift         each step's part in that at most 2 %
  python -m calibration --speedup 1.5 --compile               the least drift at 1.5 times the speed, however it is got
  python -m calibration advise --compile                      what pays here: fewer steps, compression, or both
  python -m calibration --threshold 0.05 --methods AST,ASC --labels 3,7,11,19
  python -m calibration --threshold 0.05 --resume             go on after an interruption
  python -m calibration --model PixArt-alpha/PixArt-Sigma-XL-2-1024-MS --threshold 0.05 --device cuda --dtype float16
  python -m calibration --model opensora --threshold 0.05 --device cuda --dtype bfloat16
  torchrun --nproc-per-node 4 -m calibration --threshold D2   the images shared out over 4 processes, a GPU each
  python -m calibration explain calibrated/demo-dpm50-mrae-0.05.json --layer 3 --step 10
  python -m calibration smoothcache --threshold 0.1           the schedule of SmoothCache, as a plan
"""
SMOOTHCACHE_EXAMPLES = """examples:
  python -m calibration smoothcache --threshold 0.1
  python -m calibration smoothcache --model demo-long --threshold 0.05 0.1 0.2 --output runs
"""


def calibrate_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m calibration",
        description="Chooses, per layer and per sampler step, the cheapest attention method whose error stays under "
        "a threshold (DiTFastAttn, Algorithm 1), and saves the plan, its picture, a trace of every candidate, and a "
        "grid of images full | compressed.",
        epilog=EXAMPLES,
    )
    names = ", ".join(f"{name} = {value}" for name, value in THRESHOLDS.items())
    how_much = parser.add_mutually_exclusive_group(required=True)
    how_much.add_argument("--threshold", nargs="+", metavar="T", help=f"one or more numbers or names ({names})")
    how_much.add_argument(
        "--drift",
        nargs="+",
        metavar="D",
        help="in place of a threshold: how far the final latents may end from the uncompressed ones, relative L2, on "
        "noise that was not calibrated on",
    )
    how_much.add_argument(
        "--speedup",
        nargs="+",
        default=[],
        metavar="X",
        help="in place of a threshold: the least drift that is found among plans this many times as fast, by measured "
        "times; steps, attention, MLPs and forecasts are chosen together",
    )
    how_much.add_argument("--latency-ms", nargs="+", default=[], metavar="MS", help="the same, for a run of so long")
    add_run(parser)
    _add_plan(parser)
    _add_search(parser)
    parser.set_defaults(advise=False)
    return parser


def advise_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m calibration advise",
        description="What pays on this model and this device: at each speedup the least drift by fewer steps, by "
        "compressed attention, and by the best plan found, on a page with a picture; and the plans themselves.",
    )
    parser.add_argument("--speedup", nargs="+", default=ADVISED, metavar="X", help="default: " + " ".join(ADVISED))
    add_run(parser)
    _add_plan(parser)
    parser.set_defaults(advise=True, threshold=None, drift=None, latency_ms=[])
    parser.set_defaults(loss=None, methods=",".join(CANDIDATES), search="replay", resume=False)
    return parser


def _add_search(parser: argparse.ArgumentParser) -> None:
    """How plans are searched for that do not keep to a time."""
    add = parser.add_argument
    add("--loss", choices=LOSS_NAMES, help="default: mrae, the paper's; drift weighs the error of the guided "
        "prediction by how far it moves the final latents, measured first")  # fmt: skip
    add("--methods", default=",".join(CANDIDATES), help=f"candidates, with commas (default: {','.join(CANDIDATES)})")
    add("--search", default="replay", choices=SEARCHES, help="plain runs the whole model for every candidate; fast, "
        "with --drift, tries none and chooses by the errors of all cells, which one run tells")  # fmt: skip
    add("--resume", action="store_true", help="go on where an interrupted run of the same command stopped")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """What plans are made of and followed by."""
    add = parser.add_argument
    add("--window", help="keys seen on each side: 32, or 32,16 for left,right (default: tokens // 8)")
    add("--temporal-window", help="the same in frames, for attention between those of a video (default: frames // 8)")
    add(
        "--token-order",
        default="raster",
        choices=TOKEN_ORDERS,
        help="how tokens stand, and so what a window covers: whole rows (raster, the paper's; default), or a patch",
    )
    add("--kernel", default="auto", choices=NAMES, help="attention by (default: auto, the fastest that fits, measured)")
    add("--compile", action="store_true", help="run the blocks in compiled pieces, as apply(compile=True) does")
    add("--batch", type=int, metavar="N", help="images at once that a speedup is measured for (default: as many as are "
        "calibrated on)")  # fmt: skip
    add("--evaluations", type=int, metavar="N", help="runs spent on improving the best plans of a speedup "
        "(default: 40)")  # fmt: skip


def explain_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m calibration explain",
        description="Why a cell of a plan is what it is: every candidate tried there, its loss and its limit.",
    )
    parser.add_argument("plan", help="a plan whose trace lies beside it")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--step", type=int, required=True)
    return parser


def smoothcache_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m calibration smoothcache",
        description="Measures, in one uncompressed run, how far the outputs of attentions and of MLPs change over a "
        "few steps, and saves the plan that reuses each kind while its error stays within a threshold (SmoothCache, "
        "arXiv 2411.10510).",
        epilog=SMOOTHCACHE_EXAMPLES,
    )
    add = parser.add_argument
    add("--threshold", nargs="+", type=float, required=True, metavar="A", help="relative L1 error; one or more")
    add("--longest", type=int, metavar="K", help="steps over which anything is reused at most (default: 3)")
    add_run(parser)
    return parser


def parse_budget(text: str) -> float:
    """ "0.05"."""
    try:
        return float(text)
    except ValueError:
        raise CalibrationError(f"{text!r} is no drift: give a relative L2 distance such as 0.05") from None


def parse_above(texts: Sequence[str], what: str, limit: float) -> list[float]:
    """Numbers above a limit, none of them twice."""
    found = []
    for text in texts:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not limit < value < float("inf"):
            raise CalibrationError(f"{text!r} is no {what}: give a number above {limit:g}")
        found.append(value)
    if len(set(found)) < len(found):
        raise CalibrationError(f"a {what} stands twice: {' '.join(texts)}")
    return found


def loss_of(options: argparse.Namespace) -> str:
    """The loss that was named, or the one that goes with what was asked for."""
    return options.loss or ("mrae" if options.threshold else DRIFT)


def parse_methods(text: str) -> tuple[Method, ...]:
    """ "AST,ASC" -> methods; FULL may be named and changes nothing."""
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PAPER]
    if unknown or not names:
        raise CalibrationError(f"unknown methods {unknown or text!r}; choose among {', '.join(PAPER)}")
    return tuple(method for method in CANDIDATES if method in names)


def parse_window(text: str | None) -> Window | None:
    if text is None:
        return None
    try:
        return Window.parse(text)
    except ValueError as error:
        raise CalibrationError(str(error)) from None
