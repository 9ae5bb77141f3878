"""Runs steps from programs prepared at the first run of a shape: compiled pieces, CUDA graphs."""

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ditfastattn.capture import CaptureError
from ditfastattn.errors import StepError
from ditfastattn.identity import Identity, identity_of
from ditfastattn.install import Overrides
from ditfastattn.models.base import Call, PreparedModel
from ditfastattn.pieces import Pieces, compiled_pieces
from ditfastattn.program import Program
from ditfastattn.runner import Run, Runner
from plans import SiteName

KEPT_SHARE = 0.25  # of the GPU's memory: programs of other shapes are kept while all together take no more

Key = tuple[object, ...]


class ProgramRunner(Runner):
    """Keeps one :class:`Program` for each shape that was run.

    A program is used only for the latents' very shape, dtype and device, the step it is entered at, and the model as it
    was prepared (``ditfastattn.identity``). Weights changed in place are seen by the next run as they are; any other
    change makes every program be prepared anew, or in the middle of a run ends it.
    """

    prepares = True

    def __init__(self, adapter: PreparedModel, compile: bool, graphs: bool) -> None:
        super().__init__(adapter)
        self.adapter: PreparedModel = adapter
        self._compile = compile
        self._pieces = compiled_pieces() if compile else Pieces()
        self._graphs = graphs
        self.captures = graphs
        self._programs: OrderedDict[Key, tuple[Program, int]] = OrderedDict()  # with the bytes it took
        self._program: Program | None = None
        self._prepared_for: Identity = ()
        self._watched: list[tuple[nn.Module, str]] = []  # weights by module and name
        self._weights: tuple[int, ...] = ()  # where these are
        self._without_graphs: str | None = None  # why, if they were asked for

    def install(self, overrides: Overrides) -> None:
        """Nothing: the model's own blocks are not called."""

    def obstacles(self) -> list[str]:
        found = []
        modules = dict(self.adapter.model.named_modules())
        hooked = [name for name, part in modules.items() if name and (part._forward_hooks or part._forward_pre_hooks)]
        if hooked:
            found.append(
                f"{', '.join(hooked[:3])} carry forward hooks, which prepared steps would not run; remove them first"
            )
        if any(hasattr(module, "_diffusers_hook") for module in modules.values()):
            found.append(
                "diffusers' hooks (layerwise casting, group offload, caching) move its weights or skip its blocks; "
                "disable them, or apply the plan without compile and graphs"
            )
        if any("forward" in block.module.__dict__ for block in self.adapter.blocks):
            found.append("the forward of its blocks was replaced by another tool; undo that first")
        return found

    def begin(self, run: Run) -> None:
        if run.identity != self._prepared_for:
            self._program = None
            self._programs.clear()
            self._prepared_for = run.identity
        latents, condition = run.call.latents, run.call.condition
        told = (condition, *(run.call.sizes or {}).values())
        shapes = tuple(None if tensor is None else tensor.shape for tensor in told)
        key = (latents.shape, latents.dtype, latents.device, shapes, run.entered_at, id(run.contexts["attn"].kernel))
        with _normal_tensors():
            if key not in self._programs:
                self._programs[key] = self._prepared(run)
                if identity_of(self.adapter.model) != run.identity:
                    self._programs.clear()
                    raise StepError(
                        "the model's weights move or change whenever it is called (offload, casting?), so its steps "
                        "cannot be prepared: undo that, or apply the plan without compile and graphs"
                    )
                self._forget_oldest(latents.device)
            self._programs.move_to_end(key)
            self._program = self._programs[key][0]
            self._program.begin(run.call)
        blocks = self.adapter.blocks  # a model moves as a whole, so that its first and its last block tell
        self._watched = [_first_weight(block.module) for block in (blocks[0], blocks[-1])]
        self._weights = self._some_weights()
        self.predicted.see(_by_site(program.predicted_bytes for program, _ in self._programs.values()))
        self.measured.see(self.cache_bytes())

    def forward(
        self, step: int, call: Call, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        _refuse_what_is_not_captured(call)
        assert self._program is not None
        if self._some_weights() != self._weights:
            raise StepError(
                "the model's weights were moved in the middle of a run (CPU offload?): begin a new run with the model "
                "where it is to stay"
            )
        with _normal_tensors():
            output = self._program.step(step, call.latents)
        return output, self.adapter.wrap(output, args, kwargs)

    def _some_weights(self) -> tuple[int, ...]:
        """Their addresses."""
        return tuple(module._parameters[name].data_ptr() for module, name in self._watched)  # type: ignore[union-attr]

    def end(self) -> None:
        """Buffers stay for the next run."""

    def close(self) -> None:
        self._program = None
        self._programs.clear()

    def cache_bytes(self) -> dict[SiteName, int]:
        return _by_site(program.store_bytes() for program, _ in self._programs.values())

    def report(self) -> list[str]:
        how = "compiled" if self._compile else "not compiled"
        lines = [f"runtime          {how}{', CUDA graphs' if self._graphs and not self._without_graphs else ''}"]
        if self._without_graphs:
            lines.append(f"                 no CUDA graphs: {self._without_graphs}")
        for key, (program, taken) in self._programs.items():
            shape = "x".join(str(size) for size in key[0])  # type: ignore[attr-defined]
            lines.append(
                f"prepared         {shape} in {program.seconds:.1f} s: {program.graphs} graphs, {taken / 2**20:.0f} MiB"
            )
        return lines

    def _prepared(self, run: Run) -> tuple[Program, int]:
        _refuse_what_is_not_captured(run.call)
        device = run.call.latents.device
        before = _reserved(device)
        program = Program(self.adapter, run, self._pieces)
        if self._graphs and device.type != "cuda":
            self._do_without_graphs(f"the model is on {device.type}, and only CUDA has them")
        shape = "x".join(str(size) for size in run.call.latents.shape)
        with tqdm(total=program.kinds, desc=f"preparing {shape}", unit="step") as bar:
            try:
                program.prepare(self._graphs and self._without_graphs is None, bar.update)
            except CaptureError as error:
                self._do_without_graphs(str(error))
                bar.reset()
                program = Program(self.adapter, run, self._pieces)
                program.prepare(False, bar.update)
            taken = max(_reserved(device) - before, sum(program.store_bytes().values()))
            bar.set_postfix_str(f"{program.graphs} graphs, {taken / 2**20:.0f} MiB")
        return program, taken

    def _do_without_graphs(self, reason: str) -> None:
        self._without_graphs = reason
        warnings.warn(f"no CUDA graphs: {reason}; steps are launched one kernel at a time", stacklevel=2)

    def _forget_oldest(self, device: torch.device) -> None:
        if device.type != "cuda":
            allowed = 2**31
        else:
            allowed = int(KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory)
        while len(self._programs) > 1 and sum(taken for _, taken in self._programs.values()) > allowed:
            self._programs.popitem(last=False)


def _by_site(parts: Iterable[Mapping[SiteName, int]]) -> dict[SiteName, int]:
    """The sums of the same sites' bytes."""
    found = Counter[SiteName]()
    for part in parts:
        found.update(part)
    return dict(found)


def _first_weight(module: nn.Module) -> tuple[nn.Module, str]:
    return next(
        (part, name) for part in module.modules() for name, weight in part._parameters.items() if weight is not None
    )


def _refuse_what_is_not_captured(call: Call) -> None:
    if torch.is_autocast_enabled(call.latents.device.type):
        raise StepError("prepared steps do not follow autocast: cast the model (pipe.to(dtype)) and leave autocast")
    if torch.is_grad_enabled() and call.latents.requires_grad:
        raise StepError("prepared steps compute no gradients: sample under torch.no_grad()")


def _reserved(device: torch.device) -> int:
    """Bytes that torch holds on the device; what it keeps for later is given back first, as every capture does."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


@contextmanager
def _normal_tensors() -> Iterator[None]:
    """No gradients, and no inference tensors: those made under ``inference_mode`` could not be written to later."""
    with torch.inference_mode(False), torch.no_grad():
        yield
