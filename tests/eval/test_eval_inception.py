"""Inception against classes that are not ours where they install, and against plain formulas where they don't.

The published weights are in no package: everything here is on random ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ditfastattn.errors import MetricError
from eval import inception_weights
from eval.inception import BlockE, FidInception, average, resize_tf1
from eval.inception_weights import _BLOCKS, _BRANCHES, _KINDS, _STEM, _TENSORS, digest, load_inception
from eval.networks import load_network


@pytest.fixture(scope="module")
def random_inception() -> FidInception:
    """Random weights and batch norms that keep the features of every layer alive."""
    torch.manual_seed(0)
    network = FidInception().eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if name.endswith("conv.weight"):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith(("bn.bias", "running_mean")):
            tensor.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def state_file(random_inception: FidInception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "state.pth"
    torch.save(random_inception.state_dict(), file)
    return file


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8))


def test_same_features_as_pytorch_fid_and_torch_fidelity(
    random_inception: FidInception, state_file: Path, tmp_path: Path
) -> None:
    """Installed beside, not into, this environment: torch-fidelity changes what torchmetrics does."""
    where = os.environ.get("DITFASTATTN_TEST_PACKAGES")
    if not where:
        pytest.skip(
            "pytorch-fid, torch-fidelity and torchvision are not at hand: pip install --no-deps --target DIR "
            "pytorch-fid torch-fidelity torchvision, and run this with DITFASTATTN_TEST_PACKAGES=DIR"
        )
    torch.save(IMAGES, tmp_path / "images.pt")
    arguments = [
        str(Path(__file__).with_name("their_inception.py")),
        str(state_file),
        str(tmp_path / "images.pt"),
        str(tmp_path / "out.pt"),
    ]
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": where}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    pool, logits, spatial = random_inception(IMAGES)
    for ours, other in (
        (pool, theirs["pool"]),
        (pool, theirs["pytorch_fid"]),
        (logits, theirs["logits"]),
        (spatial, theirs["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1)),
    ):
        assert ours.shape == other.shape and ours.std() > 1e-3
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_shapes_and_that_every_layer_counts(random_inception: FidInception) -> None:
    pool, logits, spatial = random_inception(IMAGES)
    assert pool.shape == (2, 2048) and logits.shape == (2, 1008) and spatial.shape == (2, 7 * 17 * 17)
    torch.testing.assert_close(logits, pool @ random_inception.fc.weight.T)
    convolutions = [n for n, m in random_inception.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 94


def test_average_counts_only_what_is_inside() -> None:
    """At a corner the mean is of 4 pixels, at an edge of 6; counting the padding gives 4/9 and 6/9 of it."""
    ones = torch.ones(1, 1, 5, 5)
    torch.testing.assert_close(average(ones), ones)
    x = torch.arange(25.0).view(1, 1, 5, 5)
    assert average(x)[0, 0, 0, 0] == (0 + 1 + 5 + 6) / 4
    assert average(x)[0, 0, 2, 0] == (5 + 6 + 10 + 11 + 15 + 16) / 6


def test_last_block_takes_the_maximum(random_inception: FidInception) -> None:
    """Restated with functions: branches in their order, and the two pools that differ."""

    def unit(block: BlockE, name: str, x: Tensor) -> Tensor:
        part = getattr(block, name)
        weight, bn = part.conv.weight, part.bn
        padding = tuple(k // 2 for k in weight.shape[2:])
        y = F.conv2d(x, weight, padding=padding)
        scale = bn.weight / (bn.running_var + 1e-3).sqrt()
        return ((y - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]).clamp(min=0)

    for block, width in ((random_inception.Mixed_7b, 1280), (random_inception.Mixed_7c, 2048)):
        x = torch.rand(1, width, 8, 8, generator=torch.Generator().manual_seed(1))
        windows = F.unfold(F.pad(x, (1, 1, 1, 1), value=-1), 3).view(1, width, 9, 8, 8)
        inside = (windows >= 0).float()
        mean = (windows * inside).sum(2) / inside.sum(2)
        pooled = windows.amax(2) if block is random_inception.Mixed_7c else mean
        three = unit(block, "branch3x3_1", x)
        double = unit(block, "branch3x3dbl_2", unit(block, "branch3x3dbl_1", x))
        expected = [unit(block, "branch1x1", x)]
        expected += [unit(block, n, three) for n in ("branch3x3_2a", "branch3x3_2b")]
        expected += [unit(block, n, double) for n in ("branch3x3dbl_3a", "branch3x3dbl_3b")]
        expected.append(unit(block, "branch_pool", pooled))
        torch.testing.assert_close(block(x), torch.cat(expected, 1), rtol=1e-4, atol=1e-5)


def test_resize_is_tensorflow_1s() -> None:
    """Pixel i is read at i * in / out: doubling [0, 3] gives 0, 1.5, 3, 3, where half-pixel centres give 0,
    .75, 2.25, 3; halving takes every other pixel, without a filter."""
    line = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    torch.testing.assert_close(resize_tf1(line, 4)[0, 0, 0], torch.tensor([0, 1.5, 3, 3]))
    torch.testing.assert_close(resize_tf1(line.mT, 4)[0, 0, :, 0], torch.tensor([0, 1.5, 3, 3]))
    wide = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(resize_tf1(wide, 4), wide[:, :, ::2, ::2])
    same = torch.rand(1, 3, 299, 299)
    assert resize_tf1(same, 299) is same


class Nest(torch.nn.Module):
    """Modules and tensors under dotted names, to be scripted as NVIDIA's file is."""

    def forward(self) -> int:
        return 0


def by_nvidias_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names of inception-2015-12-05.pt; what the names mean, the next test holds."""
    units = {f"layers.{name}": target for name, target in _STEM.items()}
    for i, block in enumerate(_BLOCKS):
        for branch, target in _BRANCHES[_KINDS[block]].items():
            units[f"layers.mixed{f'_{i}' if i else ''}.{branch}"] = f"Mixed_{block}.{target}"
    tensors = {f"{a}.{leaf}": state[f"{b}.{key}"] for a, b in units.items() for leaf, key in _TENSORS.items()}
    return tensors | {"output.weight": state["fc.weight"], "output.bias": state["fc.bias"]}


def nested(tensors: dict[str, Tensor]) -> Nest:
    root = Nest()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        module: torch.nn.Module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Nest())
            module = getattr(module, parent)
        module.register_buffer(leaf, tensor)
    return root


def test_nvidias_names_mean_what_tensorflows_graph_does(random_inception: FidInception) -> None:
    """The graph run from the tensors by their names alone: a block joins conv, the towers in their order, each a chain
    conv, conv_1, ..., and a pool; the last two fork into mixed_conv and mixed_conv_1."""
    state = by_nvidias_names(random_inception.state_dict())

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, beta, mean, var = (state[f"layers.{name}.{leaf}"] for leaf in ("weight", "beta", "mean", "var"))
        same = stride == 1 and name not in ("conv_1", "conv_4")  # the stem's other convolutions have no padding
        y = F.conv2d(x, weight, stride=stride, padding=tuple(k // 2 for k in weight.shape[2:]) if same else 0)
        return F.relu(F.batch_norm(y, mean, var, None, beta, eps=1e-3))

    def chain(prefix: str, x: Tensor, stride: int) -> Tensor:
        names = [f"{prefix}.conv" + (f"_{i}" if i else "") for i in range(5)]
        names = [n for n in names if f"layers.{n}.weight" in state]
        for n in names:
            x = unit(n, x, stride if n == names[-1] else 1)
        return x

    def block(index: int, x: Tensor) -> Tensor:
        name = "mixed" + (f"_{index}" if index else "")
        stride = 2 if index in (3, 8) else 1
        parts = [unit(f"{name}.conv", x, stride)] if index != 8 else []
        if index < 9:
            parts += [chain(f"{name}.{tower}", x, stride) for tower in ("tower", "tower_1")[: 1 if index == 3 else 2]]
        else:
            a = unit(f"{name}.tower_conv", x)
            b = unit(f"{name}.tower_1_conv_1", unit(f"{name}.tower_1_conv", x))
            parts += [unit(f"{name}.tower_mixed_conv{s}", a) for s in ("", "_1")]
            parts += [unit(f"{name}.tower_1_mixed_conv{s}", b) for s in ("", "_1")]
        if stride == 2:
            return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
        pooled = F.max_pool2d(x, 3, 1, 1) if index == 10 else average(x)
        return torch.cat([*parts, unit(f"{name}.tower_2_conv" if index > 8 else f"{name}.tower_2.conv", pooled)], 1)

    x = (resize_tf1(IMAGES.permute(0, 3, 1, 2).float(), 299) - 128) / 128
    x = F.max_pool2d(unit("conv_2", unit("conv_1", unit("conv", x, 2))), 3, 2)
    x = F.max_pool2d(unit("conv_4", unit("conv_3", x)), 3, 2)
    for index in range(11):
        if index == 6:
            spatial = unit("mixed_6.conv", x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = block(index, x)
    pool, logits, theirs = random_inception(IMAGES)
    torch.testing.assert_close(x.mean((2, 3)), pool, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spatial, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool @ state["output.weight"].T, logits)


@pytest.mark.filterwarnings("ignore")
def test_every_form_gives_the_same_network(random_inception: FidInception, state_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    scripted, safe = tmp_path / "inception-2015-12-05.pt", tmp_path / "inception.safetensors"
    torch.jit.script(nested(by_nvidias_names(random_inception.state_dict()))).save(str(scripted))
    save_file(random_inception.state_dict(), safe)
    wanted = random_inception(IMAGES)
    found = [load_inception(file) for file in (state_file, scripted, safe)]
    assert len({weights.digest for weights in found}) == 1
    for weights in found:
        assert not weights.published
        for ours, theirs in zip(weights.network(IMAGES), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_weights_from_the_environment_and_their_warning(state_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(inception_weights.VARIABLE, str(state_file))
    network = load_network("inception")
    assert network.is_inception and "not the published file" in network.warnings[0]
    assert network(IMAGES.numpy()).pool.shape == (2, 2048)


def test_digest_sees_every_tensor(random_inception: FidInception) -> None:
    state = {k: v.clone() for k, v in random_inception.state_dict().items() if "batches" not in k}
    before = digest(state)
    state["Mixed_6c.branch_pool.bn.running_var"][3] += 1e-3
    assert digest(state) != before


def test_weights_that_will_not_do(random_inception: FidInception, tmp_path: Path) -> None:
    def load(state: object) -> None:
        torch.save(state, tmp_path / "w.pth")
        load_inception(tmp_path / "w.pth")

    state = dict(random_inception.state_dict())
    with pytest.raises(MetricError, match=r"lacks tensors \(fc.bias"):
        load({k: v for k, v in state.items() if k != "fc.bias"})
    with pytest.raises(MetricError, match="classifier of 1000 outputs such as torchvision's"):
        load(state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
    with pytest.raises(MetricError, match="misshapen"):
        load(state | {"Conv2d_1a_3x3.conv.weight": torch.zeros(1)})
    with pytest.raises(MetricError, match="no dictionary of tensors"):
        load([1])
    (tmp_path / "w.pth").write_bytes(b"not weights")
    with pytest.raises(MetricError, match="cannot be loaded as weights"):
        load_inception(tmp_path / "w.pth")
    with pytest.raises(MetricError, match="does not exist"):
        load_inception(tmp_path / "none.pth")


def test_fetched_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file URL stands for the network: what is not the published file is not kept."""
    sent = tmp_path / "pt.pth"
    sent.write_bytes(b"something else")
    monkeypatch.delenv(inception_weights.VARIABLE, raising=False)
    monkeypatch.setenv("DITFASTATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(inception_weights, "URL", sent.as_uri())
    with pytest.raises(MetricError, match="is not the published file"):
        load_inception()
    assert not list((tmp_path / "cache").iterdir())
    sent.unlink()
    with pytest.raises(
        MetricError, match=r"no weights for Inception, and none can be fetched .* give the file with --we"
    ):
        load_inception()
