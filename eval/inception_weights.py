"""Where the weights of the FID's Inception come from, and what forms they come in."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ditfastattn.errors import MetricError
from eval.arguments.common import WEIGHTS as VARIABLE
from eval.inception import LOGITS, FidInception
from plans.files import write_whole

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256_STARTS = "6726825d"  # the publisher put it into the name, as torch.hub does
FORMS = "pt_inception-2015-12-05-6726825d.pth (pytorch-fid, torch-fidelity) or inception-2015-12-05.pt (TorchScript)"

# TensorFlow's names of the blocks, which the TorchScript file has, and those of the state dict.
_STEM = {"conv": "Conv2d_1a_3x3", "conv_1": "Conv2d_2a_3x3", "conv_2": "Conv2d_2b_3x3"}
_STEM |= {"conv_3": "Conv2d_3b_1x1", "conv_4": "Conv2d_4a_3x3"}
_BLOCKS = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
_BRANCHES = {
    "A": {
        "conv": "branch1x1",
        **{f"tower.conv{s}": f"branch5x5_{n}" for s, n in (("", 1), ("_1", 2))},
        **{f"tower_1.conv{s}": f"branch3x3dbl_{n}" for s, n in (("", 1), ("_1", 2), ("_2", 3))},
        "tower_2.conv": "branch_pool",
    },
    "B": {
        "conv": "branch3x3",
        **{f"tower.conv{s}": f"branch3x3dbl_{n}" for s, n in (("", 1), ("_1", 2), ("_2", 3))},
    },
    "C": {
        "conv": "branch1x1",
        **{f"tower.conv{s}": f"branch7x7_{n}" for s, n in (("", 1), ("_1", 2), ("_2", 3))},
        **{f"tower_1.conv{s}": f"branch7x7dbl_{n}" for s, n in (("", 1), ("_1", 2), ("_2", 3), ("_3", 4), ("_4", 5))},
        "tower_2.conv": "branch_pool",
    },
    "D": {
        **{f"tower.conv{s}": f"branch3x3_{n}" for s, n in (("", 1), ("_1", 2))},
        **{f"tower_1.conv{s}": f"branch7x7x3_{n}" for s, n in (("", 1), ("_1", 2), ("_2", 3), ("_3", 4))},
    },
    "E": {
        "conv": "branch1x1",
        "tower_conv": "branch3x3_1",
        "tower_mixed_conv": "branch3x3_2a",
        "tower_mixed_conv_1": "branch3x3_2b",
        "tower_1_conv": "branch3x3dbl_1",
        "tower_1_conv_1": "branch3x3dbl_2",
        "tower_1_mixed_conv": "branch3x3dbl_3a",
        "tower_1_mixed_conv_1": "branch3x3dbl_3b",
        "tower_2_conv": "branch_pool",
    },
}
_KINDS = dict(zip(_BLOCKS, "AAABCCCCDEE", strict=True))
_TENSORS = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


class Weights(NamedTuple):
    """A network with its weights, their digest, and whether the file is the published one."""

    network: FidInception
    digest: str
    published: bool


def load_inception(path: Path | None = None) -> Weights:
    """Inception from `path`, else from $DITFASTATTN_INCEPTION, else fetched once and kept.

    Raises:
        MetricError: no file and no network; a file of another kind or with missing or misshapen tensors.
    """
    named = path or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    file = named or fetch()
    if not file.is_file():
        raise MetricError(f"{file} does not exist; expected Inception's weights: {FORMS}")
    state = _state(file)
    network = FidInception()
    wanted = network.state_dict()
    # Counters that inference never reads: some versions of the file have them, some don't.
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    needed = {k for k in wanted if not k.endswith("num_batches_tracked")}
    wrong = sorted(k for k in needed & state.keys() if state[k].shape != wanted[k].shape)
    lost, foreign = sorted(needed - state.keys()), sorted(state.keys() - needed)
    if any(k.startswith("AuxLogits") for k in foreign) or "fc.weight" in wrong:
        raise MetricError(
            f"{file} is a classifier of {len(state.get('fc.bias', ()))} outputs such as torchvision's, and the FID's "
            f"Inception has {LOGITS}; expected {FORMS}"
        )
    for what, which in (("lacks", lost), ("has unknown", foreign), ("has misshapen", wrong)):
        if which:
            raise MetricError(f"{file} {what} tensors ({which[0]} and {len(which) - 1} more); expected {FORMS}")
    network.load_state_dict(state, strict=False)
    return Weights(network.eval().requires_grad_(False), digest(state), _sha256(file).startswith(SHA256_STARTS))


def digest(state: dict[str, Tensor]) -> str:
    """Of the tensors, not of the file, so that both forms of the same weights agree."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].detach().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def fetch() -> Path:
    """The published state dict in the cache, downloaded and checked where it is not yet.

    Raises:
        MetricError: it cannot be downloaded, or is not what was published.
    """
    cache = os.environ.get("DITFASTATTN_CACHE") or Path.home() / ".cache" / "ditfastattn"
    file = Path(cache) / URL.rsplit("/", 1)[1]
    if file.is_file():
        return file
    say = f"give the file with --weights or ${VARIABLE}: {FORMS}; or use --network efficientnet-lite0"

    def download(beside: Path) -> None:
        try:
            with urllib.request.urlopen(URL, timeout=30) as answer, open(beside, "wb") as out:
                size = int(answer.headers.get("Content-Length", 0))
                with tqdm(total=size or None, unit="B", unit_scale=True, desc="Inception's weights") as bar:
                    while chunk := answer.read(1 << 20):
                        out.write(chunk)
                        bar.update(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise MetricError(f"no weights for Inception, and none can be fetched ({reason}); {say}") from None
        if not _sha256(beside).startswith(SHA256_STARTS):
            raise MetricError(f"what {URL} sent is not the published file (its SHA-256 differs); {say}")

    write_whole(file, download)
    return file


def _state(file: Path) -> dict[str, Tensor]:
    """Tensors by the state dict's names, from either form. No code of the file is run."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        if _is_torchscript(file):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit is deprecated; the file is of 2020
                # TorchScript is interpreted by torch and reaches neither Python nor files; none of it is called here.
                return from_torchscript(torch.jit.load(str(file), map_location="cpu").state_dict())
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except MetricError:
        raise
    except Exception as error:  # pickle, zip and torch have exceptions of their own
        reason = " ".join(str(error).split())[:120]
        raise MetricError(f"{file} cannot be loaded as weights ({reason}); expected {FORMS}") from None
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise MetricError(f"{file} holds no dictionary of tensors; expected {FORMS}")
    return loaded


def from_torchscript(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of inception-2015-12-05.pt (NVIDIA's translation) by the state dict's names.

    There a convolution is `layers.mixed_4.tower.conv_1` with weight, beta, mean and var; its scale is 1 and left out.
    """
    blocks = {"mixed" + (f"_{i}" if i else ""): name for i, name in enumerate(_BLOCKS)}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, leaf = name.rpartition(".")
        if prefix == "output":
            renamed[f"fc.{leaf}"] = tensor
            continue
        layer, _, branch = prefix.removeprefix("layers.").partition(".")
        if layer in _STEM and leaf in _TENSORS:
            target = _STEM[layer]
        elif layer in blocks and leaf in _TENSORS and branch in _BRANCHES[_KINDS[blocks[layer]]]:
            target = f"Mixed_{blocks[layer]}.{_BRANCHES[_KINDS[blocks[layer]]][branch]}"
        else:
            raise MetricError(f"the TorchScript file has a tensor {name}, which Inception has not; expected {FORMS}")
        renamed[f"{target}.{_TENSORS[leaf]}"] = tensor
        renamed[f"{target}.bn.weight"] = torch.ones(tensor.shape[0])
    return renamed


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
