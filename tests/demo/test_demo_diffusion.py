from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ditfastattn.demo.diffusion import BETA_END, BETA_START, STEPS, Diffusion
from ditfastattn.demo.export import build_scheduler


def inputs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(5, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    output = torch.randn(5, 8, 6, 6, generator=generator, dtype=torch.float64)
    return output, x0, noise, torch.tensor([0, 1, 17, 500, 999])


def plain(output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, t: int) -> tuple[float, float]:
    """One sample's two terms from the definitions: q(x_{t-1} | x_t, x_0) by multiplying Gaussians."""
    betas = [BETA_START + (BETA_END - BETA_START) * i / (STEPS - 1) for i in range(STEPS)]
    abar = math.prod(1 - b for b in betas[: t + 1])
    prev = math.prod(1 - b for b in betas[:t])
    eps, v = output[:4], output[4:]
    xt = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise

    def mean(start: torch.Tensor) -> torch.Tensor:
        if t == 0:
            return start
        precision = (1 - betas[t]) / betas[t] + 1 / (1 - prev)
        return (math.sqrt(1 - betas[t]) / betas[t] * xt + math.sqrt(prev) / (1 - prev) * start) / precision

    def tilde(s: int) -> float:
        a, b = math.prod(1 - x for x in betas[: s + 1]), math.prod(1 - x for x in betas[:s])
        return betas[s] * (1 - b) / (1 - a)

    low, high = math.log(tilde(max(t, 1))), math.log(betas[t])
    sigma = (0.5 * ((v + 1) / 2 * high + (1 - (v + 1) / 2) * low)).exp()
    model = Normal(mean((xt - math.sqrt(1 - abar) * eps) / math.sqrt(abar)), sigma)
    bound = -model.log_prob(x0) if t == 0 else kl_divergence(Normal(mean(x0), math.exp(low / 2)), model)
    return ((eps - noise) ** 2).mean().item(), bound.mean().item() / math.log(2)


def test_loss_equals_its_definition() -> None:
    output, x0, noise, t = inputs()
    simple, bound = Diffusion().loss(output, x0, noise, t)
    for i in range(5):
        expected = plain(output[i], x0[i], noise[i], int(t[i]))
        assert (simple[i].item(), bound[i].item()) == pytest.approx(expected, rel=1e-7)


def test_bound_trains_the_variance_alone() -> None:
    output, x0, noise, t = inputs()
    output.requires_grad_()
    diffusion = Diffusion()
    (gradient,) = torch.autograd.grad(diffusion.loss(output, x0, noise, t)[1].sum(), output)
    assert not gradient[:, :4].any()
    assert gradient[:, 4:].flatten(1).abs().amax(1).gt(0).all()
    (gradient,) = torch.autograd.grad(diffusion.loss(output, x0, noise, t)[0].sum(), output)
    assert not gradient[:, 4:].any()
    assert gradient[:, :4].any()


def test_bound_is_least_at_the_true_posterior() -> None:
    _, x0, noise, t = inputs()
    perfect = torch.cat([noise, -torch.ones_like(noise)], 1)
    bound = Diffusion().loss(perfect, x0, noise, t)[1][1:]
    torch.testing.assert_close(bound, torch.zeros_like(bound), atol=1e-9, rtol=0)


def test_schedule_is_the_one_that_is_shipped() -> None:
    alphas = build_scheduler().alphas_cumprod
    torch.testing.assert_close(Diffusion().sqrt_abar.float(), alphas.sqrt(), rtol=1e-4, atol=1e-5)
