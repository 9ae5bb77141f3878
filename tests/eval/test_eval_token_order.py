"""Losses by token order, on a model that takes seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_pipeline

from eval import token_order
from plans import Window


def test_nearest_tokens_are_seen_and_as_many_as_the_window_has_keys() -> None:
    window = Window(left=2, right=2)
    kernel = token_order.Nearest((4, 4), window)
    assert kernel.mask.sum(1).tolist() == [round(window.pairs(16) / 16)] * 16
    seen = [divmod(int(token), 4) for token in kernel.mask[5].nonzero()]
    assert all(abs(row - 1) + abs(column - 1) <= 1 for row, column in seen)
    q, k, v, add = (torch.randn(2, 16, 2, 8) for _ in range(4))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5
    expected = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~kernel.mask, -torch.inf).softmax(-1), v) + add
    torch.testing.assert_close(kernel.window(q, k, v, window, add), expected)


def test_ratio_is_the_geometric_mean() -> None:
    assert token_order.ratio([1.0, 8.0], [2.0, 1.0]) == pytest.approx(2.0)


def test_an_older_residual_loses_more_and_raster_is_its_own_measure() -> None:
    rows = token_order.losses(small_pipeline(), (1, 2), steps=12, every=3, seed=0)
    assert len(rows) == 2 * 4 * len(token_order.AGES)
    for order in ("raster", "tile", "hilbert", "nearest"):
        for window in (2, 1):
            here = [row for row in rows if (row["order"], row["window"]) == (order, window)]
            assert [row["mean"] for row in here] == sorted(row["mean"] for row in here)
            assert all(row["cells"] == 3 * 4 for row in here)
            assert [row["of_raster"] == 1 for row in here] == [order == "raster"] * 3


def test_the_command_writes_figures_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*_: Any) -> Any:
        return small_pipeline()

    monkeypatch.setattr(token_order, "load_pipeline", small)
    arguments = ["--steps", "6", "--thresholds", "0.3", "--calibration-steps", "3", "--out", str(tmp_path)]
    token_order.main(arguments)
    result = json.loads((tmp_path / "token_order.json").read_text())
    assert result["command"].startswith("python -m eval token-order --steps 6")
    assert [row["order"] for row in result["calibrated"]] == ["raster", "tile", "hilbert"]
    assert {"device", "versions", "date", "labels"} <= result.keys()
    assert (tmp_path / "token_order.png").stat().st_size > 10_000
