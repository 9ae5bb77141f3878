"""Text to video with STDiT2, as Open-Sora 1.1 samples: prompts by T5, 200 IDDPM steps, frames by an image VAE.

From hpcaitech/Open-Sora: opensora/schedulers/iddpm, opensora/models/vae/vae.py, opensora/models/text_encoder/t5.py and
configs/opensora-v1-1/inference/sample.py.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ditfastattn.decode import decode
from ditfastattn.opensora.stdit2 import STDiT2
from ditfastattn.samplers import takes_variance

FPS = 24  # what the model is told of a video unless somebody says otherwise
IMAGE_FPS = 120  # of a single frame, as in training (IMG_FPS of opensora/datasets, used by scripts/inference-long.py)
GUIDED_CHANNELS = 3  # of the latents' four; the fourth is the conditional branch's
OUTPUT_TYPES = ("np", "pil", "latent")


@dataclass
class OpenSoraPipelineOutput(BaseOutput):
    """Videos.

    ``frames``: for "np" an array (B, T, H, W, 3), float32 in [0, 1]; for "pil" B lists of T images; for "latent" a
    tensor (B, C, T, h, w).
    """

    frames: Any


class OpenSoraPipeline(DiffusionPipeline):
    """Open-Sora 1.1, text to video.

    A guided batch is [cond, uncond]. The unconditional branch reads the model's own null caption, so there is no
    negative prompt.

    Args:
        tokenizer, text_encoder: T5 1.1 XXL. May be None: then prompts are given as embeddings.
        vae: an image VAE, frame by frame. Its outputs are multiples of 8 pixels: 240 x 426 gives 240 x 424, from
            30 x 53 latents, which are 15 x 27 = 405 tokens a frame.
        transformer: the STDiT2.
        scheduler: "iddpm" of ``ditfastattn.samplers`` as published; every other there gets the noise alone.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012 (diffusers adds a list to it)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKL,
        transformer: STDiT2,
        scheduler: Any,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_prompt(self, prompt: str | list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, 1, L, C) and masks (B, L) of prompts, lower-cased and stripped.

        Open-Sora's programs also clean away what captions from the web carry (addresses, HTML, file names).

        Raises:
            ValueError: there is no text encoder (any more).
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "this pipeline has no text encoder: give prompt_embeds= and prompt_mask=, which encode_prompt() makes "
                "while there is one"
            )
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        tokens = self.tokenizer(
            [text.lower().strip() for text in prompts],
            max_length=self.transformer.config.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.text_encoder.device)
        mask = tokens["attention_mask"]
        embeds = self.text_encoder(input_ids=tokens["input_ids"], attention_mask=mask)[0]  # (B, L, C)
        return embeds[:, None], mask

    def release_text_encoder(self) -> None:
        """Drops the text encoder, 19 GB in float32; from then on prompts are given as embeddings."""
        self.text_encoder = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_frames: int = 16,
        height: int = 240,
        width: int = 426,
        fps: float | None = None,
        num_inference_steps: int = 200,
        guidance_scale: float = 7.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        latents: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> OpenSoraPipelineOutput | tuple[Any]:
        """Videos from prompts.

        Args:
            prompt: one or several, or None with ``prompt_embeds`` (B, 1, L, C) and ``prompt_mask`` (B, L), which
                :meth:`encode_prompt` gives.
            fps: what the model is told; None: 24, or 120 where there is one frame, as the published programs have it.
                They show videos at a third of it.
            guidance_scale: s in uncond + s (cond - uncond), on the first three latent channels; 1: without guidance.
            generator: with one a video, as ``ditfastattn.sampling.image_generators(seed, indices)`` gives, a video
                depends on its seed and index alone.
            latents: (B, C, T, h, w) noise to begin with, of that many frames, height and width.
            output_type: "np", "pil" or "latent"; see :class:`OpenSoraPipelineOutput`.
            return_dict: False returns the frames in a tuple.

        Raises:
            ValueError: arguments that do not fit together; one sentence says which.
            LoadError: a scheduler that would cut the latents' channels (``ditfastattn.samplers.takes_variance``).
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either prompt= or prompt_embeds=")
        if (prompt_embeds is None) != (prompt_mask is None):
            raise ValueError("prompt_embeds= and prompt_mask= go together, as encode_prompt() gives them; give both")
        if prompt is not None and not isinstance(prompt, str) and not len(prompt):
            raise ValueError("prompt= holds no prompt; give one at least")
        variance = takes_variance(self.scheduler)
        embeds, mask = self.encode_prompt(prompt) if prompt is not None else (prompt_embeds, prompt_mask)
        assert embeds is not None and mask is not None
        factor, channels = self.vae_scale_factor, self.transformer.in_channels
        self._check(embeds, mask, num_frames, height, width, guidance_scale)
        shape = (embeds.shape[0], channels, num_frames, height // factor, width // factor)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(
                f"latents is {tuple(latents.shape)}, and should be {shape} for this size and these prompts"
            )

        device, videos = self._execution_device, embeds.shape[0]
        embeds = embeds.to(device)
        guided = guidance_scale != 1
        if guided:
            null = self.transformer.y_embedder.y_embedding.to(embeds)
            embeds = torch.cat([embeds, null.expand(videos, 1, -1, -1)])
        rows = embeds.shape[0]
        told = {"num_frames": num_frames, "height": height, "width": width, "ar": height / width}
        told["fps"] = usual_fps(num_frames) if fps is None else fps
        dtype = self.transformer.dtype
        condition = {name: torch.full((rows,), value, device=device, dtype=dtype) for name, value in told.items()}
        condition["mask"] = mask.to(device).repeat(rows // videos, 1)

        self.scheduler.set_timesteps(num_inference_steps)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        extra = self._step_arguments(generator)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for timestep in self.scheduler.timesteps:
                batch = self.scheduler.scale_model_input(latents.repeat(rows // videos, 1, 1, 1, 1), timestep)
                output = self.transformer(batch, timestep.expand(rows).to(device), embeds, **condition)
                if guided:
                    output = guide(output, guidance_scale)
                given = output if variance else output[:, :channels]
                latents = self.scheduler.step(given, timestep, latents, **extra).prev_sample
                bar.update()
        frames = latents if output_type == "latent" else self._frames(latents, output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=frames) if return_dict else (frames,)

    def _check(self, embeds: Tensor, mask: Tensor, frames: int, height: int, width: int, guidance_scale: float) -> None:
        config, factor = self.transformer.config, self.vae_scale_factor
        words = config.model_max_length if guidance_scale != 1 else embeds.shape[-2]
        wanted = (embeds.shape[0], 1, words, config.caption_channels)
        if tuple(embeds.shape) != wanted:
            raise ValueError(f"prompt_embeds is {tuple(embeds.shape)}, and should be {wanted} as encode_prompt() gives")
        if tuple(mask.shape) != (wanted[0], wanted[2]):
            raise ValueError(f"prompt_mask is {tuple(mask.shape)}, and should be {(wanted[0], wanted[2])}")
        if not all(isinstance(size, int) for size in (frames, height, width)):
            raise ValueError(f"num_frames, height and width are integers, not {frames}, {height} and {width}")
        if frames < 1 or height < factor or width < factor:
            raise ValueError(f"a video has a frame at least, of {factor} x {factor} pixels at least")

    def _step_arguments(self, generator: Any) -> dict[str, Any]:
        # Of the class: what a session puts in place of the method takes anything.
        takes = "generator" in inspect.signature(type(self.scheduler).step).parameters
        return {"generator": generator} if takes else {}

    def _frames(self, latents: Tensor, output_type: str) -> Any:
        videos = latents.shape[0]
        pixels = decode(self.vae, latents.transpose(1, 2).flatten(0, 1))  # (B * T, H, W, 3), uint8
        frames = pixels.unflatten(0, (videos, -1)).numpy()
        if output_type == "pil":
            return [[PIL.Image.fromarray(frame) for frame in video] for video in frames]
        return frames.astype(np.float32) / 255


def usual_fps(frames: int) -> int:
    """The frames a second that the model is told of a video of so many frames; an image has a number of its own."""
    return FPS if frames > 1 else IMAGE_FPS


def guide(output: Tensor, scale: float) -> Tensor:
    """(2B, C, T, h, w) of [cond, uncond] -> (B, C, T, h, w): three channels guided, all others the conditional's."""
    cond, uncond = output.chunk(2)
    eps = uncond[:, :GUIDED_CHANNELS] + scale * (cond[:, :GUIDED_CHANNELS] - uncond[:, :GUIDED_CHANNELS])
    return torch.cat([eps, cond[:, GUIDED_CHANNELS:]], dim=1)
