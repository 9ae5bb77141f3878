"""The training loss of DiT (Peebles & Xie 2023): noise prediction plus a variational bound for the variance.

Notation follows Ho et al. 2020 ("DDPM") and Nichol & Dhariwal 2021 ("IDDPM"): x_t = sqrt(abar_t) x_0 +
sqrt(1 - abar_t) eps, with t counted from 0 here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


class Diffusion:
    """The tables of a linear schedule, float64 until used; every table is (STEPS,)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        beta = torch.linspace(BETA_START, BETA_END, STEPS, dtype=torch.float64, device=device)
        abar = torch.cumprod(1 - beta, 0)
        abar_prev = torch.cat([abar.new_ones(1), abar[:-1]])
        # DDPM Eq. 7. The variance is 0 at t = 0, where its logarithm is replaced by the next one (IDDPM's
        # code does so).
        variance = beta * (1 - abar_prev) / (1 - abar)
        self.sqrt_abar, self.sqrt_one_minus_abar = abar.sqrt(), (1 - abar).sqrt()
        self.log_beta = beta.log()
        self.log_variance = torch.cat([variance[1:2], variance[1:]]).log()
        self.mean_x0 = beta * abar_prev.sqrt() / (1 - abar)
        self.mean_xt = (1 - abar_prev) * (1 - beta).sqrt() / (1 - abar)

    @staticmethod
    def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """table[t] as (B, 1, ..., 1) in the dtype of `like`; t is (B,) int64."""
        return table[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of DDPM Eq. 4; x0 and noise are (B, C, ...), t is (B,)."""
        return self.at(self.sqrt_abar, t, x0) * x0 + self.at(self.sqrt_one_minus_abar, t, x0) * noise

    def log_sigma2(self, v: Tensor, t: Tensor) -> Tensor:
        """IDDPM Eq. 15 with v in [-1, 1] standing for [0, 1]: between the posterior's log variance and log
        beta_t."""
        share = (v + 1) / 2
        return share * self.at(self.log_beta, t, v) + (1 - share) * self.at(self.log_variance, t, v)

    def variational(self, eps: Tensor, v: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The term L_t of the bound in bits per dimension, (B,): KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t)),
        and at t = 0 the Gaussian negative log density of x_0 (latents are continuous, so there are no bins
        to integrate over)."""
        x0_pred = (xt - self.at(self.sqrt_one_minus_abar, t, xt) * eps) / self.at(self.sqrt_abar, t, xt)
        a, b = self.at(self.mean_x0, t, xt), self.at(self.mean_xt, t, xt)
        true_mean, mean = a * x0 + b * xt, a * x0_pred + b * xt
        true_log, log = self.at(self.log_variance, t, xt), self.log_sigma2(v, t)
        kl = 0.5 * (log - true_log - 1 + (true_log - log).exp() + (true_mean - mean) ** 2 * (-log).exp())
        nll = 0.5 * (math.log(2 * math.pi) + log + (x0 - mean) ** 2 * (-log).exp())
        bound = torch.where((t == 0).view(-1, *[1] * (xt.ndim - 1)), nll, kl)
        return bound.flatten(1).mean(1) / math.log(2)

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(L_simple, L_vlb), each (B,), to be added as they are. `output` is the network's (B, 2C, ...):
        eps, then v.

        IDDPM Eq. 16 weighs the bound by 0.001; as its code and DiT's do, the bound is taken as 1000 times one
        random term, so the two factors cancel. The mean's gradient is stopped in it: it trains the variance
        alone.
        """
        eps, v = output.chunk(2, dim=1)
        simple = ((eps - noise) ** 2).flatten(1).mean(1)
        return simple, self.variational(eps.detach(), v, x0, self.noisy(x0, noise, t), t)
