"""The xFormers experiment: equivalence before times, the variants, the charts and the file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_pipeline
from small_pixart import small_pixart_pipeline
from torch import Tensor

from ditfastattn.errors import DitFastAttnError
from ditfastattn.kernels import KERNELS
from ditfastattn.kernels.sdpa import SDPA
from eval.cli import main
from eval.readme import render
from eval.xformers_benchmark import geometry
from eval.xformers_variants import AsWritten, check, equivalence, variant

NAMES = ("materialised", "sdpa", "xformers", "as written")


class Fake(SDPA):
    """Stands in for xFormers, which no CPU can run."""

    name = "xformers"


@pytest.fixture
def with_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "xformers", Fake)


def model() -> Any:
    return geometry(4, "cpu", torch.float32, quick=True)


@pytest.mark.usefixtures("with_xformers")
def test_the_command_checks_first_then_measures_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["xformers", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("random weights") and "4.63 x" in printed
    for part in printed.split("narrow DiT-XL")[1:]:
        assert 0 < part.index("relative") < part.index("x materialised")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "xformers-quick-bars.png",
        "xformers-quick-lines.png",
        "xformers-quick.json",
    ]
    result = json.loads((tmp_path / "xformers-quick.json").read_text())
    rows = result["rows"]
    assert len(rows) == 2 * (2 + 1) * 4 and result["weights"] == "random" and "4.63" in result["claim"]
    assert {row["variant"] for row in rows} == set(NAMES)
    for row in rows:
        assert row["seconds"] > 0 and row["equivalent"] == (row["variant"] != "as written")
        assert (row["relative_error"] < 1e-5) == row["equivalent"]
    assert all(row["speedup"] == 1 for row in rows if row["variant"] == "materialised")

    results = tmp_path / "eval" / "results"
    results.mkdir(parents=True)
    (tmp_path / "xformers-quick.json").rename(results / "xformers.json")
    monkeypatch.setattr("eval.readme.ROOT", tmp_path)
    page = render("before\n<!-- table xformers -->\n<!-- end -->\nafter")
    assert page.count("narrow DiT-XL/2-256, one call |") == 2 and page.count("(1.00 x)") >= 6
    assert "as written |" not in page and "4.63 x" in page and page.endswith("<!-- end -->\nafter")


def test_without_xformers_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditfastattn.kernels.xformers.find_spec", lambda name: None)
    small_pipeline(layers=1).save_pretrained(tmp_path / "trained")
    command = ["xformers", "--quick", "--device", "cpu", "--out", str(tmp_path), "--model", str(tmp_path / "trained")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("xFormers is left out: xFormers is not installed") == 1
    result = json.loads((tmp_path / "xformers-quick.json").read_text())
    assert {row["variant"] for row in result["rows"]} == set(NAMES) - {"xformers"}
    assert {row["model"] for row in result["rows"]} == {"trained"} and result["weights"].endswith("trained")


@pytest.mark.usefixtures("with_xformers")
@torch.no_grad()
def test_equivalence_tells_another_layout_from_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = equivalence(model(), NAMES)
    assert errors["materialised"]["relative"] == 0 and errors["sdpa"]["max"] > 0
    assert errors["xformers"]["relative"] < 1e-5 < 0.01 < errors["as written"]["relative"]
    check(errors)

    def heads_for_tokens(self: Fake, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return SDPA.full(self, *(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    monkeypatch.setattr(Fake, "full", heads_for_tokens)
    with pytest.raises(DitFastAttnError, match="xformers is not equivalent"):
        check(equivalence(model(), NAMES))
    with pytest.raises(DitFastAttnError, match="sdpa is not equivalent"):
        check(errors | {"sdpa": {"max": 0.0, "relative": float("nan")}})


@torch.no_grad()
def test_as_written_no_token_sees_another() -> None:
    attention = model().transformer_blocks[0].attn1
    x = torch.randn(2, 6, 48)
    changed = x.clone()
    changed[:, 3] += 1
    before, after = (AsWritten(SDPA())(attention, given) for given in (x, changed))
    moved = (after - before).abs().amax(dim=(0, 2))
    assert moved[3] > 0.01 and moved[[0, 1, 2, 4, 5]].max() < 1e-6


@pytest.mark.usefixtures("with_xformers")
@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_taken_off_again(name: str) -> None:
    here = model()
    before = [block.attn1.processor for block in here.transformer_blocks]
    with variant(here, name):
        inside = [block.attn1.processor for block in here.transformer_blocks]
    assert all(a is not b for a, b in zip(before, inside, strict=True))
    assert all(block.attn1.processor is p for block, p in zip(here.transformer_blocks, before, strict=True))


@pytest.mark.parametrize(
    "options, match",
    [
        (["--batches", "ten"], "write them like 10,50,100"),
        (["--steps", "0"], "at least 1"),
        ([], "--quick runs anywhere"),
    ],
)
def test_bad_options_get_one_sentence(options: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xformers", "--device", "cpu", *options]) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


def test_only_dit_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_pixart_pipeline().save_pretrained(tmp_path)
    assert main(["xformers", "--quick", "--device", "cpu", "--model", str(tmp_path)]) == 2
    assert "this experiment is on DiT" in capsys.readouterr().err
