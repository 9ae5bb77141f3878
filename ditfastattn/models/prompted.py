"""Models conditioned on prompts: nothing in the embeddings tells the guidance branches apart."""

import torch

from ditfastattn.models.base import Call, ModelAdapter


class Prompted(ModelAdapter):
    """``call.condition`` is (B, T, C), prompt embeddings.

    A label tells the branches of DiT apart; prompt embeddings don't: any text may be the negative prompt of any image.
    Verified when a run begins: an even batch with one prompt a row, whose halves hold equal latents. Verified when the
    plan is applied to a pipeline (or with ``scheduler=``), after each step: the sampler was handed
    uncond + s (cond - uncond) of these halves in this order. On a bare transformer without its sampler neither the
    order of the branches nor the scale can be verified, nor can a guided batch be told from one that holds the same
    noise twice with two prompts.
    """

    def is_guided(self, call: Call) -> bool:
        """Whether the batch can be cut into two branches; see the class for what is verified elsewhere."""
        batch = call.latents.shape[0]
        return batch % 2 == 0 and call.condition is not None and call.condition.shape[0] == batch

    def mixes_branches(self, call: Call) -> bool:
        """Whether both halves have the same noise and other prompts: two branches, or so alike that none can tell."""
        if call.condition is None or not self.is_guided(call):
            return False
        (noise, same_noise), (prompts, others) = call.latents.chunk(2), call.condition.chunk(2)
        return torch.equal(noise, same_noise) and not torch.equal(prompts, others)
