"""STDiT2 checkpoints: by name, from the forms they come in, and what is said of those that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_opensora import WIDTH, WORDS, sizes, small_stdit2, small_t5, small_vae
from torch import Tensor

from ditfastattn import load_pipeline
from ditfastattn.errors import LoadError
from ditfastattn.opensora import OpenSoraPipeline, STDiT2, load_stdit2
from ditfastattn.samplers import IDDPMScheduler

# What the published programs also write into config.json.
RUNTIME = {
    "architectures": ["STDiT2"],
    "auto_map": {"AutoModel": "modeling_stdit2.STDiT2"},
    "class_dropout_prob": 0.1,
    "drop_path": 0.0,
    "enable_flash_attn": True,
    "enable_layernorm_kernel": True,
    "freeze": None,
    "input_size": [None, None, None],
    "model_type": "STDiT2",
    "no_temporal_pos_emb": False,
    "torch_dtype": "float32",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint as the hub has the large one."""
    model = small_stdit2()
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    del config["qk_norm_legacy"]  # the published config.json is older
    (tmp_path / "config.json").write_text(json.dumps(RUNTIME | config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def output(model: STDiT2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 2, 6, 8, generator=generator)
    words = torch.randn(1, 1, WORDS, WIDTH, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([500]), words, **sizes())


def check_same(found: STDiT2, expected: STDiT2) -> None:
    """Weights to the last bit; what they compute but for rounding, which differs by where a file's begin in memory."""
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.testing.assert_close(output(found), output(expected), rtol=1e-5, atol=1e-5)


def test_every_form_of_a_checkpoint_gives_the_model(folder: Path) -> None:
    expected = small_stdit2()
    check_same(load_stdit2(folder), expected)
    check_same(load_stdit2(folder / "model.safetensors"), expected)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "stage3.pt")
    check_same(load_stdit2(folder), expected)
    torch.save({"state_dict": state}, folder / "stage3.pt")
    check_same(load_stdit2(folder / "stage3.pt"), expected)


def test_what_save_pretrained_writes_is_read_by_both(tmp_path: Path) -> None:
    model = small_stdit2()
    model.save_pretrained(tmp_path)
    check_same(load_stdit2(tmp_path), model)
    check_same(STDiT2.from_pretrained(tmp_path), model)


def test_frequencies_are_the_checkpoints(folder: Path) -> None:
    """rope.freqs is stored, so it is loaded like any weight, and like the published one is not trained."""
    state = load_file(folder / "model.safetensors")
    state["rope.freqs"] *= 2
    save_file(state, folder / "model.safetensors")
    model = load_stdit2(folder)
    assert torch.equal(model.rope.freqs, state["rope.freqs"]) and not model.rope.freqs.requires_grad
    assert not torch.equal(output(model), output(small_stdit2()))


def test_the_dtype_asked_for(folder: Path) -> None:
    model = load_stdit2(folder, torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16} and not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.attn.q_norm.weight": None}, r"missing blocks\.0\.attn\.q_norm\.weight$"),
        ({f"blocks.{i}.mlp.fc{j}.bias": None for i in (0, 1) for j in (1, 2)}, r"missing .*fc1\.bias.* and 1 more"),
        ({"pos_embed": torch.zeros(1)}, "unexpected pos_embed$"),
        ({"rope.freqs": torch.zeros(4)}, r"rope\.freqs is \(4,\), not \(8,\)"),
        ({"rope.freqs": None, "freqs": torch.zeros(8)}, "missing rope.freqs; unexpected freqs"),
        ({"rope.freqs": torch.zeros(8, dtype=torch.int8)}, r"no dense floating-point numbers: rope\.freqs of int8$"),
        ({"rope.freqs": torch.zeros(8, dtype=torch.bool)}, r"rope\.freqs of bool$"),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_listed(folder: Path, change: dict[str, Any], message: str) -> None:
    state = load_file(folder / "model.safetensors") | change
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors")
    with pytest.raises(LoadError, match=f"does not fit STDiT2: .*{message}") as error:
        load_stdit2(folder)
    assert "\n" not in str(error.value)


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["rope.freqs"][0] = 1e5  # infinity in float16
    torch.save(state, folder / "stage3.pt")
    load_stdit2(folder)
    with pytest.raises(LoadError, match=r"holds NaN or infinity in float16: rope\.freqs$"):
        load_stdit2(folder, torch.float16)
    freqs = state.pop("rope.freqs")
    for broken in (freqs.to(torch.complex64), freqs.to_sparse()):
        torch.save(state | {"rope.freqs": broken}, folder / "stage3.pt")
        with pytest.raises(LoadError, match=r"no dense floating-point numbers: rope\.freqs of"):
            load_stdit2(folder)
    torch.save(state | {"rope.freqs": freqs * torch.nan}, folder / "stage3.pt")
    with pytest.raises(LoadError, match=r"holds NaN or infinity in float32: rope\.freqs$"):
        load_stdit2(folder)
    torch.save(state | {"rope.freqs": freqs, 3: freqs}, folder / "stage3.pt")
    with pytest.raises(LoadError, match="tensors by parameter name, nothing else"):
        load_stdit2(folder)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *[("input_sq_size", value, "a whole number above 0") for value in (0, None, "512", 512.0, True)],
        *[("hidden_size", value, "a whole number above 0") for value in (-48, "48")],
        ("depth", 2.0, "a whole number above 0"),
        ("num_heads", -3, "a whole number above 0"),
        *[("mlp_ratio", value, "a number above 0") for value in (-4, "4", None, float("inf"), float("nan"), True)],
        *[(flag, "false", "true or false") for flag in ("pred_sigma", "qk_norm", "qk_norm_legacy")],
        ("qk_norm", 1, "true or false"),
        *[("patch_size", value, "three whole numbers above 0") for value in (2, [1, 2], [1, -2, 2], [1, 2.0, 2], None)],
    ],
)
def test_settings_that_are_none_of_a_model_are_refused(folder: Path, name: str, value: Any, wanted: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(LoadError, match=f"gives {name} as .*, and it should be {wanted}$") as error:
        load_stdit2(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_gets_one_sentence(folder: Path, tmp_path: Path) -> None:
    for missing in ("./nowhere", "nowhere/model.pt"):
        with pytest.raises(LoadError, match="does not exist"):
            load_stdit2(missing)
    with pytest.raises(LoadError, match="of model_type STDiT2"):
        load_stdit2(Path(__file__).parent)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(RUNTIME | {"model_type": "STDiT3"}))
    with pytest.raises(LoadError, match="of model_type STDiT2"):
        load_stdit2(other)
    (other / "config.json").write_text(json.dumps(RUNTIME | {"hidden_size": 50}))
    with pytest.raises(LoadError, match="no weights"):
        load_stdit2(other)
    (other / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LoadError, match="multiple of 12"):
        load_stdit2(other)
    (other / "config.json").write_text(json.dumps(RUNTIME))
    with pytest.raises(LoadError, match="not a readable checkpoint"):
        load_stdit2(other)
    (folder / "notes.txt").write_text("")
    with pytest.raises(LoadError, match=r"is no \.safetensors, \.pt, \.pth file"):
        load_stdit2(folder / "notes.txt")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (print, ("run",))

    torch.save({"rope.freqs": Evil()}, tmp_path / "stage3.pt")
    with pytest.raises(LoadError, match="not a readable checkpoint of plain tensors"):
        load_stdit2(tmp_path / "stage3.pt")


def test_load_pipeline_recognises_the_folder(folder: Path, tmp_path: Path) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    tokenizer, encoder = small_t5()
    tokenizer.save_pretrained(tmp_path / "t5")
    encoder.save_pretrained(tmp_path / "t5")
    parts = {"vae": tmp_path / "vae", "text_encoder": tmp_path / "t5"}
    pipe = load_pipeline(folder, dtype=torch.bfloat16, **parts)
    assert isinstance(pipe, OpenSoraPipeline) and isinstance(pipe.scheduler, IDDPMScheduler)
    assert (pipe.scheduler.config.beta_start, pipe.scheduler.config.beta_end) == (1e-4, 0.02)
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.bfloat16 and pipe.text_encoder.dtype == torch.float32
    assert torch.equal(pipe.encode_prompt("A boat")[1], torch.tensor([[1, 1, 1, 0, 0]]))
    with pytest.raises(LoadError, match=r"tokenizer .* cannot be loaded; give text_encoder= a folder"):
        load_pipeline(folder, vae=parts["vae"], text_encoder=tmp_path / "vae")
    with pytest.raises(LoadError, match=r"VAE .* cannot be loaded; give vae= a folder"):
        load_pipeline(folder, vae=tmp_path / "nowhere", text_encoder=parts["text_encoder"])
    with pytest.raises(LoadError, match="text_encoder= goes with Open-Sora"):
        load_pipeline("demo", text_encoder=parts["text_encoder"])
