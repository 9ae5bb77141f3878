"""What a careful user has without us: the same transformer compiled as a whole, and captured as a CUDA graph."""

from typing import Any

import torch
from torch import Tensor, nn


def compiled(transformer: nn.Module) -> nn.Module:
    """The transformer compiled as one piece for the exact shapes it meets."""
    return torch.compile(transformer, fullgraph=True, dynamic=False)  # type: ignore[return-value]


class Captured(nn.Module):
    """A compiled transformer whose call is captured once and replayed; one shape only.

    Tensors are copied into the buffers that the graph reads, and the output is copied out of its buffer, since
    samplers keep it.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.inner = transformer
        self._call = compiled(transformer)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Any] = {}
        self._output: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        kwargs = {"hidden_states": hidden_states, **kwargs}
        if self._graph is None:
            self._capture(kwargs)
        for name, buffer in self._inputs.items():
            if isinstance(buffer, Tensor):
                buffer.copy_(kwargs[name])
        assert self._graph is not None and self._output is not None
        self._graph.replay()
        output = self._output.clone()
        return _Output(output) if kwargs.get("return_dict", True) else (output,)

    def _capture(self, kwargs: dict[str, Any]) -> None:
        self._inputs = {name: v.clone() if isinstance(v, Tensor) else v for name, v in kwargs.items()}
        for _ in range(3):  # compiles, then settles
            self._call(**self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self._call(**self._inputs)[0]


class _Output(tuple[Tensor]):
    """What diffusers' models return: a tuple of one whose entry is also ``.sample``."""

    def __new__(cls, sample: Tensor) -> "_Output":
        return super().__new__(cls, (sample,))

    @property
    def sample(self) -> Tensor:
        return self[0]
