"""The demo's autoencoder: 64 px images to 4 x 32 x 32 latents and back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm


def build_vae(channels: tuple[int, int] = (48, 96), size: int = 64) -> AutoencoderKL:
    """An AutoencoderKL with one downsampling. No attention: at 64 px convolutions see far enough."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=min(16, channels[0]),
        sample_size=size,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def to_float(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels along H and along W."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def vae_loss(vae: AutoencoderKL, x: Tensor, noise: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """(loss, L1), scalars: L1 on pixels, L1 on image gradients (edges carry this art) and a small KL. x is
    (B, 3, H, W), noise (B, 4, H/2, W/2)."""
    moments = vae.quant_conv(vae.encoder(x)).float()
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    out = vae.decoder(vae.post_quant_conv(mean + (0.5 * logvar).exp() * noise)).float()
    l1 = (out - x).abs().mean()
    edges = sum((a - b).abs().mean() for a, b in zip(gradients(out), gradients(x), strict=True))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return l1 + 0.5 * edges + kl_weight * kl, l1


def train_vae(vae: AutoencoderKL, images: Tensor, iterations: int = 4000, batch: int = 256, lr: float = 2e-3,
              kl_weight: float = 3e-4, seed: int = 0, seconds: float | None = None,
              compile_model: bool = False) -> list[tuple[int, float]]:  # fmt: skip
    """Train in place on `images` (N, H, W, 3) uint8, on the device they are on. Returns (iteration, L1)
    pairs.

    With `seconds` the learning rate falls by whichever of iterations and time is further on, and training
    ends there.
    """
    device = images.device
    generator = torch.Generator(device)
    step = torch.compile(vae_loss) if compile_model else vae_loss
    if device.type == "cuda":
        vae.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    latent = images.shape[1] // 2
    started, done, curve = time.monotonic(), 0.0, []
    bar = tqdm(range(iterations), desc="autoencoder", unit="it", mininterval=2)
    for i in bar:
        done = i / iterations
        if seconds is not None:
            # The first iteration compiles; the clock starts behind it.
            started = time.monotonic() if i == 1 else started
            done = max(done, (time.monotonic() - started) / seconds)
            if done >= 1:
                break
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (i + 1) / 100, (1 - done) / 0.4 + 0.01)
        generator.manual_seed(seed * 1_000_003 + i)
        index = torch.randint(len(images), (batch,), generator=generator, device=device)
        x = to_float(images[index])
        flip = torch.rand(batch, generator=generator, device=device) < 0.5
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(-1), x)
        noise = torch.randn(batch, 4, latent, latent, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, l1 = step(vae, x, noise, kl_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if i % 50 == 0 or i == iterations - 1:
            curve.append((i, l1.item()))
            bar.set_postfix(l1=f"{curve[-1][1]:.4f}")
    vae.to(memory_format=torch.contiguous_format)
    return curve


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 512) -> Iterator[Tensor]:
    """Latent means (B, 4, h, w) float32, batch by batch, of images (N, H, W, 3) uint8."""
    for chunk in images.split(batch):
        x = to_float(chunk.to(vae.device))
        yield vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)[0]


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Give each latent channel mean 0 and variance 1 over `images`, by folding the affine map into the two
    1x1 convolutions beside the latent. DiTPipeline knows one scaling factor and no shift; after this, it
    is 1."""
    count = 0
    total = square = torch.zeros(4, dtype=torch.float64, device=vae.device)
    for z in encode(vae, images):
        z = z.double()
        count += z.numel() // 4
        total, square = total + z.sum((0, 2, 3)), square + (z**2).sum((0, 2, 3))
    mean = total / count
    std = (square / count - mean**2).sqrt().float()
    mean = mean.float()
    into, back = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] /= std.view(4, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.bias[4:] -= 2 * std.log()  # the log variances shrink with the means
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std.view(1, 4, 1, 1)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor, batch: int = 512) -> Tensor:
    """Images (N, H, W, 3) uint8 through latent means and back, as uint8 on the CPU."""
    out = []
    for z in encode(vae, images, batch):
        x = vae.decode(z).sample.float()
        out.append(((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(out)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, for (N, H, W, 3) uint8."""
    error = F.mse_loss(a.double() / 255, b.double() / 255, reduction="none").flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-10).log10()).mean().item()
