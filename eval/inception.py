"""The Inception-V3 that the FID is defined with: Google's graph of 2015-12-05, of which Heusel et al. 2017 took pool_3.

Blocks as in Szegedy et al. 2015 (arXiv 1512.00567, figures 5 to 7), names as in the PyTorch state dict of these
weights, which are torchvision's. What sets this graph apart from torchvision's network (facts from pytorch-fid,
torch-fidelity and ADM's evaluator; a test compares with the first two):

- average pools inside the blocks leave the padding out of their mean, as TensorFlow does;
- the pool of the last block takes the maximum, though the paper has an average;
- 1008 outputs; no auxiliary head; batch norm with eps 1e-3;
- the input is resized as TensorFlow 1 did (`resize_bilinear`, align_corners=False): output pixel i is read at
  i * in/out, without half a pixel's shift and without antialiasing. Both look like mistakes today, but the numbers in
  papers have them;
- (x - 128) / 128, not x / 127.5 - 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
POOL, LOGITS = 2048, 1008
SPATIAL_CHANNELS = 7  # of 17 x 17: 2023 numbers, about as many as pool_3 has


class ConvBnRelu(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, same: bool = False):
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    """3 x 3 mean that counts only the pixels inside the map."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, double 3x3, pool."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBnRelu(inputs, 64, 1)
        self.branch5x5_1 = ConvBnRelu(inputs, 48, 1)
        self.branch5x5_2 = ConvBnRelu(48, 64, 5, same=True)
        self.branch3x3dbl_1 = ConvBnRelu(inputs, 64, 1)
        self.branch3x3dbl_2 = ConvBnRelu(64, 96, 3, same=True)
        self.branch3x3dbl_3 = ConvBnRelu(96, 96, 3, same=True)
        self.branch_pool = ConvBnRelu(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBnRelu(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvBnRelu(inputs, 64, 1)
        self.branch3x3dbl_2 = ConvBnRelu(64, 96, 3, same=True)
        self.branch3x3dbl_3 = ConvBnRelu(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17: 1x1, 7x7 and double 7x7 as rows and columns, pool."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = ConvBnRelu(inputs, 192, 1)
        self.branch7x7_1 = ConvBnRelu(inputs, width, 1)
        self.branch7x7_2 = ConvBnRelu(width, width, row, same=True)
        self.branch7x7_3 = ConvBnRelu(width, 192, column, same=True)
        self.branch7x7dbl_1 = ConvBnRelu(inputs, width, 1)
        self.branch7x7dbl_2 = ConvBnRelu(width, width, column, same=True)
        self.branch7x7dbl_3 = ConvBnRelu(width, width, row, same=True)
        self.branch7x7dbl_4 = ConvBnRelu(width, width, column, same=True)
        self.branch7x7dbl_5 = ConvBnRelu(width, 192, row, same=True)
        self.branch_pool = ConvBnRelu(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvBnRelu(inputs, 192, 1)
        self.branch3x3_2 = ConvBnRelu(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvBnRelu(inputs, 192, 1)
        self.branch7x7x3_2 = ConvBnRelu(192, 192, (1, 7), same=True)
        self.branch7x7x3_3 = ConvBnRelu(192, 192, (7, 1), same=True)
        self.branch7x7x3_4 = ConvBnRelu(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8: 1x1, and two branches that end in a row and a column side by side, pool."""

    def __init__(self, inputs: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = ConvBnRelu(inputs, 320, 1)
        self.branch3x3_1 = ConvBnRelu(inputs, 384, 1)
        self.branch3x3_2a = ConvBnRelu(384, 384, (1, 3), same=True)
        self.branch3x3_2b = ConvBnRelu(384, 384, (3, 1), same=True)
        self.branch3x3dbl_1 = ConvBnRelu(inputs, 448, 1)
        self.branch3x3dbl_2 = ConvBnRelu(448, 384, 3, same=True)
        self.branch3x3dbl_3a = ConvBnRelu(384, 384, (1, 3), same=True)
        self.branch3x3dbl_3b = ConvBnRelu(384, 384, (3, 1), same=True)
        self.branch_pool = ConvBnRelu(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class FidInception(nn.Module):
    """(B, H, W, 3) uint8 to pool_3 (B, 2048), logits (B, 1008) and spatial features (B, 2023), float32."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBnRelu(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBnRelu(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBnRelu(32, 64, 3, same=True)
        self.Conv2d_3b_1x1 = ConvBnRelu(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBnRelu(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, maximum=False)
        self.Mixed_7c = BlockE(2048, maximum=True)
        self.fc = nn.Linear(POOL, LOGITS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = resize_tf1(images.permute(0, 3, 1, 2).float(), SIDE)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        # TensorFlow's mixed_6/conv, the 1x1 branch of this block after its ReLU, in channels-last order as ADM's sFID
        # has it; the order changes no distance, but it does what stored statistics mean.
        spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pool = x.mean((2, 3))
        # Without the bias: so did the first Inception Score (Salimans et al. 2016), and all that compare with it.
        return pool, pool @ self.fc.weight.T, spatial


def resize_tf1(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) float to (B, C, side, side), as TensorFlow 1's resize_bilinear without align_corners."""
    x = _along(x, side, 3)
    return _along(x, side, 2)


def _along(x: Tensor, side: int, axis: int) -> Tensor:
    length = x.shape[axis]
    if length == side:
        return x
    at = torch.arange(side, dtype=torch.float32, device=x.device) * (length / side)
    low = at.long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    weight = (at - low).to(x.dtype)
    weight = weight if axis == 3 else weight[:, None]
    first, second = x.index_select(axis, low), x.index_select(axis, high)
    return first + (second - first) * weight
