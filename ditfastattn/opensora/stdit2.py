"""STDiT2, the transformer of Open-Sora 1.1, with the parameter names of its published checkpoints.

Written from hpcaitech/Open-Sora (opensora/models/stdit/stdit2.py, opensora/models/layers/blocks.py); no package carries
it. An XL/2 stores 768,271,300 numbers, the count that the hub gives for hpcai-tech/OpenSora-STDiT-v2-stage3.
"""

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ditfastattn.opensora.blocks import FinalLayer, STDiT2Block
from ditfastattn.opensora.embeddings import (
    CaptionEmbedder,
    NumberEmbedder,
    PatchEmbed3D,
    RotaryFrequencies,
    grid_positions,
)


class STDiT2(ModelMixin, ConfigMixin):
    """The noise, and the variance, of videos of any size, from prompts and a few numbers about the video.

    The defaults are those of the published XL/2. Names of the settings are those of its ``config.json``.

    Args:
        input_sq_size: side in pixels of the square that positions are scaled to.
        mlp_ratio: hidden width of the feed-forward over the width.
        pred_sigma: twice the channels come out: the noise, then where the variance lies (arXiv 2102.09672, Eq. 15).
        caption_channels: width of the text encoder.
        model_max_length: words of a prompt.
        qk_norm: RMS norms of queries and keys.
        qk_norm_legacy: rotary embedding before these norms, as all Open-Sora 1.1 checkpoints were trained, whose
            ``config.json`` is older than the setting; False: after them.
    """

    _no_split_modules = ("STDiT2Block",)

    @register_to_config
    def __init__(
        self,
        input_sq_size: int = 512,
        in_channels: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pred_sigma: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 200,
        qk_norm: bool = True,
        qk_norm_legacy: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size % 12 or hidden_size % (2 * num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 12 (sizes, positions) and of 2 * num_heads = {2 * num_heads} "
                f"(rotary pairs), not {hidden_size}"
            )
        frames, rows, columns = patch_size
        self.patch_size = (frames, rows, columns)
        self.in_channels = in_channels
        self.out_channels = 2 * in_channels if pred_sigma else in_channels
        self.input_sq_size = input_sq_size
        self.hidden_size = hidden_size
        self.x_embedder = PatchEmbed3D(self.patch_size, in_channels, hidden_size)
        self.t_embedder = NumberEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 3 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length)
        self.rope = RotaryFrequencies(hidden_size // num_heads)
        self.blocks = nn.ModuleList(
            STDiT2Block(hidden_size, num_heads, mlp_ratio, qk_norm, qk_norm_legacy) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, math.prod(self.patch_size) * self.out_channels)
        self.csize_embedder = NumberEmbedder(hidden_size // 3)
        self.ar_embedder = NumberEmbedder(hidden_size // 3)
        self.fl_embedder = NumberEmbedder(hidden_size)
        self.fps_embedder = NumberEmbedder(hidden_size)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: None = None,
        *,
        num_frames: Tensor,
        height: Tensor,
        width: Tensor,
        ar: Tensor,
        fps: Tensor,
    ) -> Tensor:
        """(B, 2 * C, T, h, w) float32: noise and variance (noise alone without ``pred_sigma``).

        ``mask`` and the sizes may have fewer rows than x; they are then repeated, as for a guided batch [cond, uncond],
        whose unconditional half thus reads as many words of the null caption as the prompt has.

        Args:
            x: (B, C, T, h, w) noisy latents.
            timestep: (B,).
            y: (B, 1, L, caption_channels) prompts from the text encoder.
            mask: (B', L) nonzero where a word counts; at least one in each row. None: all count.
            num_frames, height, width, ar, fps: (B',) frames, pixels, height / width and frames a second that the model
                is told. Positions follow the first row's size, which should be that of all.

        Raises:
            ValueError: ``x_mask``, Open-Sora's argument for frames that are given, was passed.
        """
        if x_mask is not None:
            raise ValueError("x_mask (frames that are given, for image or video to video) is not supported: pass None")
        batch, dtype = x.shape[0], self.x_embedder.proj.weight.dtype
        time = self.time(timestep)
        spatial, temporal = self.modulations(
            time,
            self.embedded_size(height, width, ar, batch),
            self.embedded_length(num_frames, fps, batch),
        )
        text = self.y_embedder(y.to(dtype))
        seen = None if mask is None else _rows(mask, batch) != 0
        hidden = self.embed(x, height, width)
        rotation = self.rope(self.x_embedder.grid(*x.shape[2:])[0])
        for block in self.blocks:
            hidden = block(hidden, text, seen, spatial, temporal, rotation)
        return self.head(hidden, self.final_layer.modulation(time), *x.shape[2:])

    def embed(self, x: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """Tokens with their places in the frame: (B, C, T, h, w) -> (B, T * S, hidden_size)."""
        dtype = self.x_embedder.proj.weight.dtype
        frames, rows, columns = self.x_embedder.grid(*x.shape[2:])
        scale = (height[0].float() * width[0].float()).sqrt() / self.input_sq_size
        places = grid_positions(rows, columns, scale.to(x.device), self.hidden_size, dtype)
        return self.x_embedder(x.to(dtype)) + places.repeat(1, frames, 1)

    def time(self, timestep: Tensor) -> Tensor:
        """(B,) -> (B, hidden_size). Timesteps are rounded to the parameters' dtype first, as they were in training."""
        return self.t_embedder(timestep.to(self.x_embedder.proj.weight.dtype)[:, None])

    def embedded_size(self, height: Tensor, width: Tensor, ar: Tensor, batch: int) -> Tensor:
        """Height, width and their ratio as (B, hidden_size), a third each."""
        pixels = torch.stack([height, width], dim=1)
        size = torch.cat([self.csize_embedder(pixels), self.ar_embedder(ar[:, None])], dim=1)
        return _rows(size, batch)

    def embedded_length(self, num_frames: Tensor, fps: Tensor, batch: int) -> Tensor:
        """Frames and frames a second as (B, hidden_size)."""
        return _rows(self.fl_embedder(num_frames[:, None]) + self.fps_embedder(fps[:, None]), batch)

    def modulations(self, time: Tensor, size: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """What every block adds to its tables, (B, 6, hidden_size) and, for temporal attention, (B, 3, hidden_size)."""
        spatial, temporal = self.t_block(time + size), self.t_block_temp(time + length)
        return spatial.unflatten(1, (6, -1)), temporal.unflatten(1, (3, -1))

    def head(self, hidden: Tensor, modulation: Tensor, frames: int, height: int, width: int) -> Tensor:
        """The output (B, out_channels, T, h, w), float32, from the last block's (B, N, C); modulation (B, 2, C)."""
        patches = self.final_layer(hidden, modulation)  # (B, N, t * h * w * C_out), channels innermost
        grid = self.x_embedder.grid(frames, height, width)
        patches = patches.unflatten(2, (*self.patch_size, self.out_channels)).unflatten(1, grid)
        video = patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return video[:, :, :frames, :height, :width].float()


def _rows(values: Tensor, batch: int) -> Tensor:
    """(B', ...) repeated to (batch, ...).

    Raises:
        ValueError: ``batch`` is no multiple of B'.
    """
    if batch % values.shape[0]:
        raise ValueError(f"masks and sizes of {values.shape[0]} rows do not fit a batch of {batch}")
    return values.repeat(batch // values.shape[0], *[1] * (values.dim() - 1))
