"""STDiT2 checkpoints: ``config.json`` beside ``model.safetensors``, as on the hub, or a bare file of tensors."""

import inspect
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor

from ditfastattn.errors import LoadError
from ditfastattn.opensora.stdit2 import STDiT2

PUBLISHED = ("hpcai-tech/OpenSora-STDiT-v2-stage2", "hpcai-tech/OpenSora-STDiT-v2-stage3")
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_SUFFIXES = (".safetensors", ".pt", ".pth")
_SHOWN = 3  # names in a message


def is_stdit2(source: str) -> bool:
    """Whether ``source`` is a hub id of Open-Sora 1.1, or a folder, or a file in one, whose ``config.json`` says so."""
    if source in PUBLISHED:
        return True
    path = Path(source)
    config = (path.parent if path.is_file() else path) / "config.json"
    if not config.is_file():
        return False
    try:
        return _is_stdit2_config(json.loads(config.read_text()))
    except (OSError, ValueError):
        return False


def load_stdit2(source: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> STDiT2:
    """A STDiT2 with the weights of a checkpoint, on the CPU, by parameter name. Nothing in a file is executed.

    Args:
        source: a hub id such as "hpcai-tech/OpenSora-STDiT-v2-stage3", a folder with ``config.json`` and weights, or a
            ``.safetensors``, ``.pt`` or ``.pth`` file; without a ``config.json`` beside it that is read as an XL/2.
        dtype: of the parameters.

    Raises:
        LoadError: nothing there, another model, settings, names, shapes or dtypes that are not STDiT2's, or weights
            that are no finite numbers in ``dtype``; one sentence says which.
    """
    name = os.fspath(source)
    config_file, weights = _files(name)
    settings = {} if config_file is None else _settings(config_file)
    try:
        with torch.device("meta"):
            model = STDiT2(**settings)
    except ValueError as error:
        raise LoadError(f"the settings of {config_file} give no STDiT2: {error}") from error
    state = _state(weights)
    _check(name, model.state_dict(), state)
    converted = {key: tensor.to(dtype) for key, tensor in state.items()}
    if broken := [key for key, tensor in converted.items() if not tensor.isfinite().all()]:
        raise LoadError(f"{name} holds NaN or infinity in {str(dtype).removeprefix('torch.')}: {_some(broken)}")
    model.load_state_dict(converted, assign=True)
    return model.eval()


def _files(name: str) -> tuple[Path | None, Path]:
    """Where the settings and the weights are; the hub's are downloaded."""
    path = Path(name)
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise LoadError(f"{name} is no {', '.join(_SUFFIXES)} file; name a checkpoint, its folder or a hub id")
        return path.parent / "config.json" if is_stdit2(name) else None, path
    if path.is_dir():
        if not is_stdit2(name):
            raise LoadError(f"{name} has no config.json of model_type STDiT2, so it is no folder of Open-Sora 1.1")
        files = [path / file for file in WEIGHTS if (path / file).is_file()]
        files = files or [file for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES]
        if not files:
            raise LoadError(f"{name} holds a config.json but no weights; {WEIGHTS[0]} should lie beside it")
        return path / "config.json", files[0]
    if name.endswith(_SUFFIXES) or name.startswith((".", "/", "~")):
        raise LoadError(f"{name} does not exist; name a checkpoint, its folder or a hub id such as {PUBLISHED[1]}")
    try:
        return Path(hf_hub_download(name, "config.json")), Path(hf_hub_download(name, WEIGHTS[0]))
    except Exception as error:  # the hub client raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise LoadError(
            f"cannot fetch {name!r} from the hub (is there a network, and does the name exist?): "
            f"{type(error).__name__}: {reason}"
        ) from error


def _is_stdit2_config(config: Any) -> bool:
    # The first is written by the published programs, the second by STDiT2.save_pretrained.
    return isinstance(config, dict) and "STDiT2" in (config.get("model_type"), config.get("_class_name"))


def _settings(path: Path) -> dict[str, Any]:
    """The settings that shape the model; a published config also holds how it was trained and run."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} is no readable JSON file ({error})") from error
    if not _is_stdit2_config(config):
        given = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise LoadError(f"{path} describes a {given!r}, and only Open-Sora 1.1's STDiT2 can be loaded")
    known = list(inspect.signature(STDiT2.__init__).parameters.values())[1:]
    settings = {setting.name: config[setting.name] for setting in known if setting.name in config}
    for setting in known:
        wanted, value = _wanted(setting.default), settings.get(setting.name, setting.default)
        if not wanted[1](value):
            raise LoadError(f"{path} gives {setting.name} as {json.dumps(value)[:60]}, and it should be {wanted[0]}")
    return settings


def _wanted(default: Any) -> tuple[str, Callable[[Any], bool]]:
    """What a setting with that default may be, in words and as a test."""
    if isinstance(default, bool):
        return "true or false", lambda value: isinstance(value, bool)
    if isinstance(default, int):
        return "a whole number above 0", _is_count
    if isinstance(default, float):
        return "a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf
    return (
        "three whole numbers above 0",
        lambda value: isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_count, value)),
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and pickle raise many kinds
        reason = str(error).split(". ")[0].split("\n")[0][:120]
        raise LoadError(f"{path} is not a readable checkpoint of plain tensors: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise LoadError(f"{path} is no checkpoint of STDiT2: it should hold tensors by parameter name, nothing else")
    return state


def _check(name: str, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Every name there, none left over, every shape right, nothing quantised."""
    faults = []
    if missing := [key for key in wanted if key not in given]:
        faults.append(f"missing {_some(missing)}")
    if unexpected := [key for key in given if key not in wanted]:
        faults.append(f"unexpected {_some(unexpected)}")
    wrong = [
        f"{key} is {tuple(given[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    if wrong:
        faults.append(f"of another shape: {_some(wrong)}")
    other = [
        f"{key} of {str(given[key].dtype).removeprefix('torch.')}"
        for key in wanted
        if key in given and not (given[key].is_floating_point() and given[key].layout is torch.strided)
    ]
    if other:
        faults.append(f"no dense floating-point numbers: {_some(other)}")
    if faults:
        raise LoadError(f"{name} does not fit STDiT2: {'; '.join(faults)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
