"""The sampler's own steps as CUDA graphs: a few launches in place of dozens.

A step of a sampler is a function of the tensors that it is given, of those that it keeps, and of counters and settings
on the host. What is recorded is the sampler's own code, so its numbers are the sampler's own. A recording holds for the
very host state that it was made in; in any other the sampler's code runs as it is.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ditfastattn.capture import capture
from ditfastattn.host_state import Part, copied, part_of, tensors_of

KEPT_BYTES = 2**30  # of all recordings: those of the runs that came longest ago are forgotten first
OVERRIDDEN = ("step", "set_timesteps")  # by the session that replays

Step = Callable[..., Any]
Attributes = dict[str, Any]


class SamplerGraphs:
    """Replays the steps of one scheduler, each recorded when it first comes.

    Args:
        scheduler: one of diffusers'. The steps of others are left as they are: what else they do is not known.
        record: makes a graph of some work.
    """

    def __init__(self, scheduler: Any, record: Callable[..., Any] = capture) -> None:
        self._scheduler, self._record = scheduler, record
        self._known = type(scheduler).__module__.split(".")[0] in ("diffusers", "ditfastattn")
        self._runs: OrderedDict[Hashable, dict[Hashable, _Recorded | None]] = OrderedDict()  # by shape and first step
        self._pool: Any = None

    @property
    def count(self) -> int:
        """Steps that are recorded, of all shapes."""
        return sum(1 for _ in self._recordings())

    def report(self) -> list[str]:
        """A line for the session's summary, once there is something to say."""
        return [f"sampler          {self.count} of its steps captured"] if self.count else []

    def close(self) -> None:
        """Frees everything."""
        self._runs.clear()
        self._pool = None

    def step(
        self, entered_at: Hashable, place: Hashable, original: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """What ``original(*args, **kwargs)`` returns, to the bit; the scheduler is left as it would leave it.

        Args:
            entered_at: the step that this run began with.
            place: which step this is.
            original: the scheduler's own ``step``.
            args: (model_output, timestep, sample); a step with others is not replayed.
        """
        shape = self._shape(original, args, kwargs)
        if shape is None:
            return original(*args, **kwargs)
        steps = self._runs.setdefault((shape, entered_at), {})
        self._runs.move_to_end((shape, entered_at))
        if place not in steps:
            steps[place], result = self._first(original, args, kwargs)
            while len(self._runs) > 1 and sum(one.nbytes for one in self._recordings()) > KEPT_BYTES:
                self._runs.popitem(last=False)
            return result
        recorded, state = steps[place], self._scheduler.__dict__
        if recorded is None or not recorded.fits(state, args[1]):
            return original(*args, **kwargs)
        return recorded.replay(state, args[0], args[2])

    def _recordings(self) -> "Iterator[_Recorded]":
        return (found for steps in self._runs.values() for found in steps.values() if found is not None)

    def _shape(self, original: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable | None:
        """Of what a step is given; None if such a step is not to be recorded."""
        own = getattr(original, "__func__", None) is type(self._scheduler).step
        if not (own and self._known) or len(args) != 3:
            return None
        tensors = args[0], args[2]
        if not all(isinstance(tensor, Tensor) and tensor.device == args[0].device for tensor in tensors):
            return None
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return None
        settings = [(name, value) for name, value in kwargs.items() if name != "generator"]
        if not all(value is None or isinstance(value, bool | int | float | str) for _, value in settings):
            return None
        return (args[0].device, *((tensor.shape, tensor.dtype) for tensor in tensors), *settings)

    def _first(
        self, original: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> "tuple[_Recorded | None, Any]":
        """A recording of this step, if there can be one, and what the step returns."""
        state: Attributes = self._scheduler.__dict__
        before, seen = copied(state), self._traces(args, kwargs, state)
        result = original(*args, **kwargs)
        after = copied(state)
        if not _alike(seen, self._traces(args, kwargs, before)):
            return None, result  # it draws noise, or writes into what it is given
        try:
            recorded = self._recorded(original, before, args, kwargs)
            _set(state, before)
            again = recorded.replay(state, args[0], args[2])
            same = _alike(tensors_of(result), tensors_of(again)) and _alike(_held(after), _held(state))
        except Exception:  # numbers that are read from the device, say, which no graph can do
            same = False
        if same:
            return recorded, result
        self._pool = None  # torch may refuse what a capture failed in, or what has lost its only graph
        _set(state, after)
        return None, result

    def _recorded(
        self, original: Step, before: Attributes, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> "_Recorded":
        output, timestep, sample = args
        state: Attributes = self._scheduler.__dict__
        place = _place_of(timestep, before)
        if place is None:
            raise RuntimeError("the timestep cannot be told without waiting for it")
        kept = {id(tensor) for one in self._recordings() for tensor in one.kept}
        with torch.inference_mode(False), torch.no_grad():
            needed = {
                name: part_of(value, output.device, lambda tensor: id(tensor) in kept)
                for name, value in before.items()
                if name not in OVERRIDDEN
            }
            given, found = (output.clone(), sample.clone()), list[Any]()
            on_host = timestep.cpu() if isinstance(timestep, Tensor) else timestep
            _set(state, {name: part.stand_in() for name, part in needed.items()})
            begun = copied(state)
            graph = self._record(lambda: found.append(original(given[0], on_host, given[1], **kwargs)), self._pool)
        self._pool = graph.pool()
        ended = copied(state)
        if set(begun) - set(ended):
            raise RuntimeError("the step takes attributes away")
        changed = {name: value for name, value in ended.items() if name not in begun or not _is(value, begun[name])}
        return _Recorded(needed, place, given, graph, found[-1], changed)

    def _traces(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], state: Attributes) -> list[Tensor]:
        """What tells whether noise was drawn, or a tensor written to that was there before."""
        generator = kwargs.get("generator")
        generators = generator if isinstance(generator, list) else [generator] if generator is not None else []
        found = [torch.get_rng_state(), *(each.get_state() for each in generators)]
        if (device := args[0].device).type == "cuda":
            found.append(torch.cuda.get_rng_state(device))
        for tensor in (*tensors_of(args), *tensors_of(state)):  # nothing counts what is written to inference tensors
            found.append(tensor.clone() if tensor.is_inference() else torch.tensor(tensor._version))
        return found


class _Recorded:
    """One step.

    Args:
        needed: of the scheduler's attributes.
        timestep: its number, or where it is among the scheduler's timesteps (:func:`_place_of`).
        given: buffers of the model's output and of the sample.
        result: what the step returned, of the graph's tensors.
        changed: the attributes that it changed.
    """

    def __init__(
        self,
        needed: Mapping[str, Part],
        timestep: tuple[str, float],
        given: tuple[Tensor, Tensor],
        graph: Any,
        result: Any,
        changed: Attributes,
    ) -> None:
        self._needed, self._timestep, self._given = needed, timestep, given
        self._graph, self._result, self._changed = graph, result, changed
        self.kept = list(tensors_of(changed))  # where they are until the graph is gone
        held = (*given, *tensors_of(result), *self.kept)
        self.nbytes = sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())

    def fits(self, state: Attributes, timestep: Any) -> bool:
        """Whether it holds for the scheduler as it is now."""
        if len(state) - sum(name in state for name in OVERRIDDEN) != len(self._needed):
            return False
        known = all(name in state and part.fits(state[name]) for name, part in self._needed.items())
        return known and _place_of(timestep, state) == self._timestep

    def replay(self, state: Attributes, output: Tensor, sample: Tensor) -> Any:
        """The step's result, the caller's to keep; ``state`` becomes what it is after the step."""
        pairs = list(zip(self._given, (output, sample), strict=True))
        for name, part in self._needed.items():
            pairs += part.sources(state[name])
        for place, source in pairs:
            place.copy_(source)
        self._graph.replay()
        _set(state, self._changed)
        return _kept(self._result)


def _set(state: Attributes, values: Mapping[str, Any]) -> None:
    state.update(copied({name: value for name, value in values.items() if name not in OVERRIDDEN}))


def _held(state: Attributes) -> list[Tensor]:
    return list(tensors_of({name: value for name, value in state.items() if name not in OVERRIDDEN}))


def _kept(result: Any) -> Any:
    """A sampler's result in tensors of its own."""
    if isinstance(result, tuple):
        return tuple(value.clone() if isinstance(value, Tensor) else value for value in result)
    return type(result)(**{n: value.clone() if isinstance(value, Tensor) else value for n, value in result.items()})


def _place_of(timestep: Any, state: Attributes) -> tuple[str, float] | None:
    """A timestep by its number; on a GPU, where reading it would be waiting, by its place in bytes among those of the
    scheduler, whose numbers the session has compared with the plan's. None for any other tensor."""
    if not isinstance(timestep, Tensor):
        return "number", float(timestep)
    if timestep.numel() != 1:
        return None
    if timestep.device.type == "cpu":
        return "number", float(timestep)
    times = state.get("timesteps")
    if not isinstance(times, Tensor) or (times.device, times.dtype) != (timestep.device, timestep.dtype):
        return None
    place = timestep.data_ptr() - times.data_ptr()
    return ("place", float(place)) if 0 <= place < times.nbytes else None


def _is(value: Any, other: Any) -> bool:
    if type(value) is list and type(other) is list:
        return len(value) == len(other) and all(map(_is, value, other))
    return value is other


def _alike(found: Any, other: Any) -> bool:
    """Whether tensors are the same to the bit, NaN and all."""
    pairs = list(found), list(other)
    return len(pairs[0]) == len(pairs[1]) and all(
        a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(*pairs, strict=True)
    )
