"""What the images of a run show: a label or a prompt for every index, and how it is recorded."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from calibration.prompts import read_prompts
from calibration.subjects import refuse_text, sampled_by
from ditfastattn.condition import Condition, FromLabels, FromPrompts, VideoSize
from eval.clip import read_captions
from eval.sample_batches import Labels, pool_of
from eval.sample_settings import SampleError
from plans import Plan


class Subjects(Protocol):
    """``settings``: the part of ``run.json`` that another command of the same run must share.

    ``latent_shape``: of one image or video, channels first.
    """

    settings: dict[str, Any]
    latent_shape: tuple[int, ...]

    def condition(self, indices: Sequence[int]) -> Condition:
        """What the model is told of these images; an image's part of it depends on its index alone."""

    def notes(self, n: int) -> dict[str, Any]:
        """What else ``run.json`` says of the first n."""

    def labels(self, n: int) -> list[int] | None:
        """Of the first n; None where images have none."""


class ByLabels:
    """``mode``: of :class:`eval.sample_batches.Labels`."""

    def __init__(self, adapter: FromLabels, pool: Sequence[int], mode: str, seed: int) -> None:
        self._adapter, self._labels = adapter, Labels(pool, mode, seed)
        self.settings: dict[str, Any] = {"labels": mode}
        self.latent_shape = self.condition([0]).latent_shape

    def condition(self, indices: Sequence[int]) -> Condition:
        return self._adapter.condition([self._labels[index] for index in indices])

    def notes(self, n: int) -> dict[str, Any]:
        return {}

    def labels(self, n: int) -> list[int] | None:
        return [self._labels[index] for index in range(n)]


class ByPrompts:
    """Image i is of the i-th prompt, from the first one again after the last; encoded with its batch.

    Args:
        ids: of the prompts, where they are COCO's captions.
        video: of a model whose videos may be of any size.

    Raises:
        LoadError, ApplyError: as :meth:`FromPrompts.condition`.
    """

    def __init__(
        self,
        adapter: FromPrompts,
        pipe: Any,
        prompts: Sequence[str],
        ids: Sequence[int] | None,
        negative: str,
        video: VideoSize | None,
    ) -> None:
        self._adapter, self._pipe, self._prompts, self._ids = adapter, pipe, prompts, ids
        self._negative, self._video = negative, video
        digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
        self.settings: dict[str, Any] = {"prompts": f"sha256:{digest}", "negative_prompt": negative}
        if video is not None:
            self.settings["video"] = list(video)
        self.latent_shape = self.condition([0]).latent_shape  # whether it can encode is told before a folder is begun

    def condition(self, indices: Sequence[int]) -> Condition:
        texts = [self._prompts[index % len(self._prompts)] for index in indices]
        return self._adapter.condition(self._pipe, texts, self._negative, self._video)

    def notes(self, n: int) -> dict[str, Any]:
        """``captions``, and COCO's ``caption_ids``, one an image: what ``eval clip`` compares it with."""
        places = [index % len(self._prompts) for index in range(n)]
        captions = {"captions": [self._prompts[place] for place in places]}
        return captions if self._ids is None else captions | {"caption_ids": [self._ids[place] for place in places]}

    def labels(self, n: int) -> list[int] | None:
        return None


def subjects_of(pipe: Any, options: argparse.Namespace, plan: Plan | None) -> Subjects:
    """What ``--labels`` or ``--prompts`` ask for; videos of any size are of the plan's unless ``--video`` says another.

    Raises:
        SampleError: labels of a model that takes prompts, or the other way round, or no prompts.
        CalibrationError, DitFastAttnError: prompts that cannot be read.
        LoadError: a pipeline that cannot encode them.
    """
    adapter, name = sampled_by(pipe.transformer), type(pipe.transformer).__name__
    if isinstance(adapter, FromLabels):
        refuse_text(options, name)
        return ByLabels(adapter, pool_of(pipe), options.labels or "random", options.seed)
    if options.prompts is None:
        raise SampleError(f"{name} is conditioned on prompts: give --prompts FILE, one prompt a line")
    if options.labels is not None:
        raise SampleError(f"--labels goes with classes, but {name} is conditioned on prompts: leave it out")
    prompts, ids = read_texts(options.prompts)
    video = options.video
    if video is None and adapter.usual_video is not None:
        planned = plan.calibration.video if plan is not None and plan.calibration is not None else None
        video = VideoSize(*planned) if planned else adapter.usual_video
    return ByPrompts(adapter, pipe, prompts, ids, options.negative_prompt or "", video)


def read_texts(path: Path) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Prompts of a file, one a line, or of COCO's ``captions_*.json`` with their ids.

    Raises:
        CalibrationError, DitFastAttnError: neither.
    """
    if path.suffix != ".json":
        return read_prompts(path), None
    found = read_captions(path)
    return tuple(" ".join(text.split()) for text in found.values()), tuple(found)
