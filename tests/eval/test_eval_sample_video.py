"""eval sample of models of video, and what reads such runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sampled import Command, ended_in_the_second_batch, record
from small_latte import FRAMES, small_text_to_video, video_plan
from small_opensora import small_opensora
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

import ditfastattn
from ditfastattn.condition import FromPrompts, VideoSize
from ditfastattn.decode import decode
from ditfastattn.models import adapt
from ditfastattn.models.opensora import OpenSora
from ditfastattn.samplers import sampler_spec
from ditfastattn.sampling import Denoiser, image_generators, sample_latents
from eval.cli import main
from eval.runs import Run
from eval.sample_videos import is_whole_video
from plans import GuidanceSpec, Method, Plan, save
from plans.calibration import Calibration

TEXTS = ("a boat on the sea", "a cat", "the boat")
SIZE = VideoSize(3, 24, 25)  # 12 x 12 latents


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    small_opensora().save_pretrained(path / "opensora")
    small_text_to_video().save_pretrained(path / "latte")
    return path


@pytest.fixture
def draw(folders: Path, tmp_path: Path) -> Command:
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))

    def command(out: str = "run", *more: str, n: int = 3, status: int = 0, model: str = "opensora") -> Path:
        base = ["--model", str(folders / model), "--device", "cpu", "--n", str(n), "--out", str(tmp_path / out)]
        base += [] if "--plan" in more else ["--steps", "2"]
        base += [] if "--video" in more or model == "latte" else ["--video", str(SIZE)]
        assert main(["sample", *base, "--prompts", str(tmp_path / "prompts.txt"), *more]) == status
        return tmp_path / out

    return command


def videos(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "videos").iterdir()}


def packed(folder: Path) -> np.ndarray:
    return np.load(folder / "samples.npz")["arr_0"]


def pipeline(path: Path) -> ditfastattn.opensora.OpenSoraPipeline:
    pipe = ditfastattn.load_pipeline(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_video_is_its_prompt_noise_and_rounding(draw: Command, folders: Path) -> None:
    """Each is what the pipeline itself makes of its prompt from (seed, index): batches hold one on a CPU."""
    out = draw("run", "--seed", "7", "--latents", "--format", "npz")
    pipe = pipeline(folders / "opensora")
    for index, text in enumerate(TEXTS):
        given = {"num_frames": 3, "height": 24, "width": 25, "num_inference_steps": 2, "output_type": "latent"}
        latents = pipe(text, generator=image_generators(7, (index,)), **given).frames
        assert np.array_equal(np.load(out / "latents" / f"{index:06d}.npy"), latents[0].numpy())
        assert np.array_equal(packed(out)[index], decode(pipe.vae, latents)[0].numpy())
    made = record(out)
    expected = {"sampler": "iddpm", "steps": 2, "guidance": 7.0, "batch": 1, "format": "npz", "video": [3, 24, 25]}
    assert expected.items() <= made.items() and made["captions"] == list(TEXTS)
    assert made["size"] == [3, 24, 24] and packed(out).shape == (3, 3, 24, 24, 3) and made["finished"]


def test_each_video_is_a_gif_that_a_kill_does_not_change(draw: Command, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ("--batch", "2")
    whole, few = draw("whole", *pairs, n=4), draw("few", *pairs, n=3)
    assert sorted(videos(whole)) == [f"{index:06d}.gif" for index in range(4)]
    assert videos(few).items() <= videos(whole).items() and record(whole)["format"] == "gif"
    for index in range(4):
        with Image.open(whole / "videos" / f"{index:06d}.gif") as gif:
            assert (gif.n_frames, gif.size, gif.info["duration"]) == (3, (24, 24), 120)
    with ended_in_the_second_batch():
        out = draw("killed", *pairs, n=4, status=130)
    done = videos(out)
    assert len(done) == 2
    torn = out / "videos" / min(done)
    torn.write_bytes(torn.read_bytes()[:-20])
    (out / "videos" / ".000003.gif.1.tmp").write_bytes(b"GIF89a")
    draw("killed", *pairs, n=4)
    assert videos(out) == videos(whole)
    capsys.readouterr()
    for more in (["--video", "2x24x24"], ["--format", "npz"], ["--guidance", "3"]):
        draw("killed", *pairs, *more, n=4, status=2)
    said = capsys.readouterr().err
    for line in ("video: [3, 24, 25], now [2, 24, 24]", "format: gif, now npz", "guidance: 7.0, now 3.0"):
        assert line in said
    (out / "videos" / "000004.gif").write_bytes(b"")
    draw("killed", *pairs, n=4, status=2)
    assert "holds 000004.gif, not of this run's 4" in capsys.readouterr().err


def test_the_batch_changes_nothing_but_rounding(draw: Command) -> None:
    one, three = draw("one", "--latents"), draw("three", "--latents", "--batch", "3")
    for index in range(3):
        ours, theirs = (np.load(folder / "latents" / f"{index:06d}.npy") for folder in (one, three))
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


def mixed_plan(folder: Path) -> Plan:
    """With the size of video that it was calibrated at, which is then the run's."""
    pipe = pipeline(folder)
    plan = Plan.full(
        model=OpenSora(pipe.transformer).spec_of(3, 12, 12),
        sampler=sampler_spec(pipe.scheduler, 3),
        guidance=GuidanceSpec(scale=3.0, layout="cond_first"),
    )
    nothing = {"versions": {}, "created": "2026-01-01T00:00:00+00:00", "methods": (Method.AST,), "labels": ()}
    made = Calibration(loss="mrae", threshold=0.1, search="replay", prompts=("a",), video=tuple(SIZE), seed=0,
                       dtype="float32", device="CPU", kernel="sdpa", **nothing)  # fmt: skip
    plan = plan.model_copy(update={"calibration": made})
    for site, row in (("attn", [Method.ASC, Method.WA_RS]), ("temporal", [Method.AST, Method.WA_RS_ASC])):
        grid = [[Method.FULL] * 2, row, [Method.AST] * 2]
        plan = plan.with_methods(grid, [[None] * 2, [0.1] * 2, [0.1] * 2], site=site)  # type: ignore[arg-type]
    return plan


def test_a_plan_brings_its_schedule_and_size(
    draw: Command, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = mixed_plan(folders / "opensora")
    save(plan, tmp_path / "plan.json")
    base = ["--model", str(folders / "opensora"), "--prompts", str(tmp_path / "prompts.txt"), "--n", "2"]
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    command = [*base, "--device", "cpu", "--format", "npz", "--out", str(tmp_path / "planned")]
    assert main(["sample", *command, "--plan", str(tmp_path / "plan.json")]) == 0
    made = record(tmp_path / "planned")
    assert (made["steps"], made["guidance"], made["video"]) == (3, 3.0, [3, 24, 25])
    assert 0 < made["attention_macs"] < 100  # type: ignore[operator]

    pipe = pipeline(folders / "opensora")
    with ditfastattn.apply(pipe, plan):
        given = {"num_frames": 3, "height": 24, "width": 25, "num_inference_steps": 3, "guidance_scale": 3.0}
        latents = pipe(TEXTS[1], generator=image_generators(0, (1,)), output_type="latent", **given).frames
    assert np.array_equal(packed(tmp_path / "planned")[1], decode(pipe.vae, latents)[0].numpy())

    draw("other", "--plan", str(tmp_path / "plan.json"), "--video", "4x24x40", status=2)
    said = capsys.readouterr().err
    assert "tokens" in said and "frames" in said and not (tmp_path / "other" / "run.json").exists()
    draw("latte", "--plan", str(tmp_path / "plan.json"), model="latte", status=2)
    assert "STDiT2" in capsys.readouterr().err


def test_latte_too(draw: Command, folders: Path, tmp_path: Path) -> None:
    full = draw("full", "--format", "npz", "--steps", "4", "--guidance", "4", model="latte")
    pipe = pipeline(folders / "latte")
    adapter = adapt(pipe.transformer)
    assert isinstance(adapter, FromPrompts)
    denoiser = Denoiser(pipe.transformer, adapter.condition(pipe, [TEXTS[2]]), 4.0)
    latents = sample_latents(denoiser, pipe.scheduler, 4, 0, (2,))
    assert np.array_equal(packed(full)[2], decode(pipe.vae, latents)[0].numpy())
    assert packed(full).shape == (3, FRAMES, 16, 16, 3) and "video" not in record(full)
    save(video_plan(pipe, steps=4), tmp_path / "plan.json")
    planned = draw("planned", "--format", "npz", "--plan", str(tmp_path / "plan.json"), model="latte")
    assert record(planned)["guidance"] == 4.0 and not np.array_equal(packed(planned), packed(full))
    kernel = draw("kernel", "--format", "npz", "--steps", "4", "--guidance", "4", "--kernel", "sdpa", model="latte")
    assert np.abs(packed(kernel).astype(int) - packed(full)).max() <= 1


def test_frames_are_compared_and_nothing_else_takes_videos(
    draw: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = draw("a", "--format", "npz", "--latents", "--guidance", "3")
    b = draw("b", "--format", "npz", "--latents")
    out = tmp_path / "similarity"
    capsys.readouterr()
    assert main(["similarity", str(a), str(b), "--lpips", "none", "--out", str(out)]) == 0
    found = json.loads((out / "similarity.json").read_text())
    for index, row in enumerate(found["images"]):
        ours, theirs = (
            torch.from_numpy(packed(run)[index]).permute(0, 3, 1, 2).double() for run in (a, b)
        )  # (T, 3, H, W)
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(ours, theirs, 255.0).item(), abs=1e-4)
        frames = [
            float(structural_similarity_index_measure(x[None], y[None], data_range=255.0))
            for x, y in zip(ours, theirs, strict=True)
        ]
        assert row["ssim"] == pytest.approx(np.mean(frames), abs=1e-4) and row["latent_rel_l2"] > 0
    assert Image.open(out / "similarity.png").size[0] > 100
    assert np.array_equal(Run.open(a, videos=True).image(1), packed(a)[1, 1])

    gif = draw("gif")
    for command, words in [
        (["similarity", str(gif), str(a)], "holds GIF files, which lose more than two runs may differ by"),
        (["report", str(b), str(a)], "b holds videos"),
        (["clip", str(b), "--clip-model", "none"], "b holds videos"),
        (["is", str(b), "--network", "efficientnet-lite0"], "b holds videos"),
        (["is", str(gif), "--network", "efficientnet-lite0"], "gif holds videos"),
        (["is", str(b / "samples.npz"), "--network", "efficientnet-lite0"], "samples.npz holds videos"),
    ]:
        capsys.readouterr()
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert words in error and error.startswith("error: ") and error.count("\n") == 1, command


def test_what_does_not_fit_gets_one_sentence(
    draw: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    for model, more, words in [
        ("opensora", ["--format", "png"], "--format png does not go with videos: choose one of gif, mp4, npz"),
        ("opensora", ["--format", "mp4"], ".mp4 needs imageio-ffmpeg: pip install 'ditfastattn[video]'"),
        ("opensora", ["--video", "big"], "a video's size is FRAMESxHEIGHTxWIDTH"),
        ("opensora", ["--video", "1x1x1"], "videos of 1x1x1 have no latents"),
        ("opensora", ["--negative-prompt", "grey"], "leave the negative prompt out"),
        ("opensora", ["--labels", "random"], "--labels goes with classes"),
        ("opensora", ["--compile"], "STDiT2 cannot be run with compile=True"),
        ("opensora", ["--kernel", "sdpa"], "use_kernel() sets the attention processors of diffusers' models"),
        ("latte", ["--video", "4x16x16"], "LattePipeline was made for one size"),
        ("latte", ["--compile"], "LatteTransformer3DModel cannot be run with compile=True"),
    ]:
        out = draw("bad", *more, model=model, status=2)
        error = capsys.readouterr().err.splitlines()  # transformers shows bars while it loads
        assert error[-1].startswith("error: ") and words in error[-1] and "Traceback" not in "".join(error)
        assert not (out / "run.json").exists()
    demo = ["--n", "1", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "demo")]
    for more, words in [(["--format", "gif"], "does not go with images"), (["--video", "1x8x8"], "--video goes with")]:
        assert main(["sample", *demo, *more]) == 2
        assert words in capsys.readouterr().err


def test_files_that_are_not_whole_are_drawn_again(tmp_path: Path) -> None:
    def box(name: bytes, size: int, length: int | None = None) -> bytes:
        return (size if length is None else length).to_bytes(4, "big") + name + bytes(size - 8)

    path, parts = tmp_path / "v.mp4", [box(b"ftyp", 20), box(b"mdat", 40), box(b"moov", 30)]
    large = (1).to_bytes(4, "big") + b"mdat" + (24).to_bytes(8, "big") + bytes(8)  # with a length of 64 bits
    for content, whole in [
        (b"".join(parts), True),
        (parts[0] + large + parts[2], True),
        (b"".join(parts)[:-1], False),
        (parts[0] + parts[1], False),
        (parts[0] + parts[1] + box(b"moov", 30, 0), False),
        (b"", False),
    ]:
        path.write_bytes(content)
        assert is_whole_video(path, (1, 8, 8)) == whole
    assert not is_whole_video(tmp_path / "none.mp4", (1, 8, 8))
    gif = tmp_path / "v.gif"
    Image.new("RGB", (9, 8)).save(gif)
    assert is_whole_video(gif, (1, 8, 9)) and not is_whole_video(gif, (1, 9, 8))
    gif.write_bytes(gif.read_bytes()[:-1])
    assert not is_whole_video(gif, (1, 8, 9))
    gif.write_bytes(b"")
    assert not is_whole_video(gif, (1, 8, 9))
