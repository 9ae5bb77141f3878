"""Which cut of the Triton kernel is fastest for a shape: measured once on the GPU, kept in a file.

The file is ``triton-window-2.json`` in ``$DITFASTATTN_CACHE``, else in ``~/.cache/ditfastattn``. Losing it costs a few
seconds of measuring; a damaged one is ignored with a warning.
"""

# mypy: disable-error-code="import-not-found,import-untyped"

import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ditfastattn.kernels.triton_window import PLAIN, Config, hopper

log = logging.getLogger(__name__)

VERSION = 2  # of the file and of the kernel: older measurements say nothing about a changed kernel
LAUNCHES, REPEATS = 8, 7
SHORT = 32  # tokens: the frames of a video, say, of which a cut for long rows would mostly compute nothing

_known: dict[Path, dict[str, Config]] = {}


def default_config(q: Tensor) -> Config:
    """A cut that fits every GPU from compute capability 8.0 on; no measurement behind it but for head dims to 128."""
    head_dim = q.shape[3]
    if q.device.type != "cuda":
        return Config(rows=32, keys=32, warps=4, stages=1)
    if q.dtype == torch.float32:  # its products run on the plain cores: what counts is that no register spills
        if head_dim > 128:
            return Config(rows=32, keys=32, warps=8, stages=1, tma=False)
        return Config(rows=32 if head_dim > 96 else 64, keys=32, warps=4, stages=2, tma=False)
    if head_dim > 128:
        return Config(rows=64, keys=32, warps=4, stages=2)
    return PLAIN


def candidates(q: Tensor) -> list[Config]:
    """Cuts worth measuring. Small ones share a multiprocessor and hide latency, large ones read keys less often; for
    thousands of short rows one warp holds a row of one head."""
    default = default_config(q)
    if q.device.type != "cuda" or q.dtype == torch.float32:
        return [default]
    if q.shape[1] <= SHORT:
        sides = [side for side in (16, SHORT) if side >= q.shape[1]]
        return [default, *(Config(side, side, warps, stages=1, tma=False) for side in sides for warps in (1, 2))]
    if q.shape[3] > 128:
        return [default, Config(64, 64, warps=4, stages=2), Config(128, 64, warps=8, stages=2)]
    more = [
        Config(128, 64, warps=4, stages=3),
        Config(128, 64, warps=8, stages=2),
        Config(128, 64, warps=8, stages=3),
        Config(64, 64, warps=4, stages=2, tma=False),
    ]
    special = hopper()
    return [default, *more, *(special.cuts(q) if special else [])]


def cache_file() -> Path:
    folder = os.environ.get("DITFASTATTN_CACHE") or Path.home() / ".cache" / "ditfastattn"
    return Path(folder) / f"triton-window-{VERSION}.json"


def key_of(q: Tensor, left: int, right: int) -> str:
    """What a measurement holds for, as one line of the file."""
    device = torch.cuda.get_device_name(q.device) if q.device.type == "cuda" else q.device.type
    shape = "x".join(str(size) for size in q.shape)
    return f"{device} | {str(q.dtype).removeprefix('torch.')} | {shape} | {left},{right}"


def read(file: Path) -> dict[str, Config]:
    """The measured cuts in ``file``; none, with a warning, if it cannot be understood."""
    try:
        content = json.loads(file.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        return {key: Config(**cut) for key, cut in content["configs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is ignored (%s): kernels are measured again", file, error)
        return {}


def write(file: Path, configs: dict[str, Config]) -> None:
    """Replace ``file`` in one step, so that no other process reads half of it. An unwritable folder is no error."""
    content = {"version": VERSION, "configs": {key: asdict(config) for key, config in sorted(configs.items())}}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            temporary.write(json.dumps(content, indent=1))
        os.replace(temporary.name, file)
    except OSError as error:
        log.warning("the measured kernels could not be kept in %s: %s", file, error)


def choose(q: Tensor, left: int, right: int, run: Callable[[Config], None]) -> Config:
    """The fastest cut for inputs like ``q`` (B, N, H, D), measured by ``run(config)`` the first time.

    Nothing is measured while a CUDA graph is captured: an unknown shape then takes the default.
    """
    options = candidates(q)
    if len(options) == 1:
        return options[0]
    file, key = cache_file(), key_of(q, left, right)
    if file not in _known:
        _known[file] = read(file)
    known = _known[file]
    if key not in known:
        if torch.cuda.is_current_stream_capturing():
            return options[0]
        known[key] = fastest(options, run)
        write(file, read(file) | known)
    return known[key]


def fastest(options: list[Config], run: Callable[[Config], None]) -> Config:
    """The option with the least median time; those that the GPU cannot hold are left out."""
    graphs: dict[Config, torch.cuda.CUDAGraph] = {}
    for config in options:
        try:
            run(config)  # compiles
        except Exception as error:
            # Triton has an exception of its own for each resource that runs out, and they change with its version.
            log.info("%s does not run here: %s", config, error)
            continue
        torch.cuda.synchronize()
        graphs[config] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[config], capture_error_mode="thread_local"):
            for _ in range(LAUNCHES):
                run(config)
    if len(graphs) < 2:
        return next(iter(graphs), options[0])
    times: dict[Config, list[float]] = {config: [] for config in graphs}
    for repeat in range(REPEATS + 1):
        for config, graph in graphs.items():  # interleaved, so that a change of clocks meets all alike
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if repeat:  # the first round warms up
                times[config].append(begin.elapsed_time(end))
    return min(times, key=lambda config: statistics.median(times[config]))
