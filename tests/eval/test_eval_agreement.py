"""The images by every kernel beside the reference's, on a run of a few steps."""

import json
from pathlib import Path

import pytest
import torch

import ditfastattn
from ditfastattn.errors import DitFastAttnError, KernelError
from ditfastattn.kernels import sdpa
from ditfastattn.samplers import sampler_spec
from eval import readme
from eval.agreement import agreement, main
from plans import Method, Plan, load, save

LIBRARY = Path(__file__).parents[2] / "plans" / "library"


@pytest.fixture(scope="module")
def short() -> Plan:
    """Four steps of the demo: full, windows with residuals, both, windows with shared guidance."""
    shipped = load(LIBRARY / "demo-dpm50-mrae-0.025.json")
    pipe = ditfastattn.load_pipeline("demo")
    plan = Plan.full(
        model=shipped.model, sampler=sampler_spec(pipe.scheduler, 4), guidance=shipped.guidance, window=shipped.window
    )
    rows = [Method.FULL, Method.WA_RS, Method.ASC, Method.WA_RS_ASC]
    return plan.with_methods([[method] * plan.layers for method in rows])


def test_the_kernels_agree_and_the_files_say_so(
    short: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(short, tmp_path / "short.json")
    arguments = ["--plan", str(tmp_path / "short.json"), "--kernels", "sdpa,flex,flash3", "--dtype", "bf16,fp32"]
    main([*arguments, "--labels", "1", "--device", "cpu", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "agreement.json").read_text())
    assert result["command"].startswith("python -m eval agreement --plan") and result["labels"] == [0]
    rows = {(row["kernel"], row["dtype"]): row for row in result["rows"]}
    assert {key: row["against"] for key, row in rows.items()} == {
        ("sdpa", "bf16"): "sdpa, fp32",
        ("flex", "bf16"): "sdpa, bf16",
        ("flex", "fp32"): "sdpa, fp32",
    }
    assert rows["flex", "fp32"]["psnr"] is None or rows["flex", "fp32"]["psnr"] > 60
    assert 15 < rows["sdpa", "bf16"]["psnr"] < 60
    assert {(entry["kernel"], entry["dtype"]) for entry in result["left_out"]} == {
        ("flash3", "bf16"),
        ("flash3", "fp32"),
    }
    assert all("FlashAttention-3 is not installed" in entry["why"] for entry in result["left_out"])
    assert (tmp_path / "agreement.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "left out: flash3 in bf16" in printed and "<- yardstick" in printed

    monkeypatch.setattr(readme, "ROOT", tmp_path)
    (tmp_path / "eval" / "results").mkdir(parents=True)
    (tmp_path / "agreement.json").rename(tmp_path / "eval" / "results" / "agreement.json")
    table = readme.agreement()
    assert "| kernel, against the reference | bf16 | fp32 |" in table and "the yardstick |" in table
    assert "| flex | " in table and "left out |" in table  # the yardstick has no fp32 column


def test_a_kernel_that_is_wrong_shows(short: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sdpa.SDPA.window

    def shifted(self, q, k, v, window, add=None):  # type: ignore[no-untyped-def]
        return right(self, q, k.roll(1, dims=1), v, window, add)

    class Wrong(sdpa.SDPA):
        name = "wrong"
        window = shifted

    class Failing(sdpa.SDPA):
        name = "failing"

        def window(self, q, k, v, window, add=None):  # type: ignore[no-untyped-def]
            raise RuntimeError("illegal instruction")

    for kernel in (Wrong, Failing):
        monkeypatch.setitem(ditfastattn.kernels.KERNELS, kernel.name, kernel)
    monkeypatch.setattr("ditfastattn.kernels.NAMES", ("wrong", "failing", "sdpa"))
    rows, left_out, _ = agreement(short, ["wrong", "failing"], ["fp32"], (0,), 0, "cpu")
    assert [row["kernel"] for row in rows] == ["wrong"] and rows[0]["psnr"] < 40
    assert left_out == [{"kernel": "failing", "dtype": "fp32", "why": "RuntimeError: illegal instruction"}]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--kernels", "warp"], KernelError, "no kernel 'warp'.*sdpa, flex"),
        (["--dtype", "fp8"], KernelError, "no dtype 'fp8'.*bf16, fp16, fp32"),
        (["--labels", "9"], DitFastAttnError, "--labels 9.*1 to 8"),
    ],
)
def test_what_it_cannot_do_it_says(arguments: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        main(arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["xformers", "triton", "varlen"])
def test_half_precision_images_agree_on_the_gpu(kernel: str, short: Plan) -> None:
    rows, left_out, _ = agreement(short, [kernel], ["fp16"], (0, 9, 18, 27), 0, "cuda")
    if left_out:
        pytest.skip(left_out[0]["why"])
    (row,) = (row for row in rows if row["kernel"] == kernel)
    assert row["psnr"] is None or row["psnr"] > 40, rows
    assert torch.isfinite(torch.tensor(row["latent_rel_l2"]))
