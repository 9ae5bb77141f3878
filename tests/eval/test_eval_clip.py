"""CLIP scores of a tiny CLIP with random weights, made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs_for_tests import pictures, write_run
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip import image_processing_pil_clip

from eval.cli import main as eval_main
from eval.clip import ClipScorer, captions_of, clip_scores, read_captions
from eval.runs import Run, RunError

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves one: letters are the words of its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    size = {"shortest_edge": 32}
    images = image_processing_pil_clip.CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)  # with which most scores are above zero
    config = CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8}, projection_dim=16)
    network = CLIPModel(config)
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3  # its own small start would make all images alike
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions_val2014.json"
    rows = [{"id": 10 * i, "image_id": 7, "caption": text} for i, text in enumerate(["a cat", "two dogs ", "the sea"])]
    path.write_text(json.dumps({"images": [], "annotations": rows}))
    return path


def test_every_image_is_scored_with_its_own_caption(
    model: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pictures(4)
    run = write_run(tmp_path / "run", images, caption_ids=[20, 0, 10, 0])
    assert eval_main(["clip", str(run), "--captions", str(captions), "--clip-model", str(model), "--batch", "3"]) == 0
    result = json.loads((run / "clip.json").read_text())

    network, processor = CLIPModel.from_pretrained(model), CLIPProcessor.from_pretrained(model)
    expected = []
    for image, text in zip(images, ["the sea", "a cat", "two dogs", "a cat"], strict=True):
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        with torch.no_grad():  # logits_per_image is the cosine times the model's own scale
            logit = network(**inputs).logits_per_image.item()
        expected.append(max(0.0, 100 * logit / network.logit_scale.exp().item()))
    assert max(expected) > 1  # else the clip at zero would hide everything
    assert result["images"] == pytest.approx(expected, abs=2e-3)
    assert result["clip_score"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert model.name in capsys.readouterr().out

    recorded = write_run(tmp_path / "recorded", images, captions=["the sea", "a cat", "two dogs", "a cat"])
    assert eval_main(["clip", str(recorded), "--clip-model", str(model), "--batch", "3"]) == 0
    assert json.loads((recorded / "clip.json").read_text())["images"] == result["images"]


def test_the_caption_of_an_image_matters(model: Path, captions: Path, tmp_path: Path) -> None:
    images = pictures(3)
    scorer, texts = ClipScorer(str(model)), read_captions(captions)
    right = clip_scores(Run.open(write_run(tmp_path / "a", images, caption_ids=[0, 10, 20])), texts, scorer)
    wrong = clip_scores(Run.open(write_run(tmp_path / "b", images, caption_ids=[10, 20, 0])), texts, scorer)
    assert np.abs(right - wrong).max() > 0.01


def test_a_caption_longer_than_the_model_takes_is_cut(model: Path, tmp_path: Path) -> None:
    assert ClipScorer(str(model))(torch.zeros(1, 3, 40, 50, dtype=torch.uint8), ["word " * 50]).shape == (1,)


def test_what_does_not_fit_is_one_sentence(
    model: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_labels = Run.open(write_run(tmp_path / "labels", pictures(2)))
    with pytest.raises(RunError, match="not made from captions"):
        captions_of(by_labels, {0: "a"})
    others = Run.open(write_run(tmp_path / "others", pictures(2), caption_ids=[0, 99]))
    with pytest.raises(RunError, match=r"1 of the 2 caption_ids .*the first is 99"):
        captions_of(others, read_captions(captions))
    few = Run.open(write_run(tmp_path / "few", pictures(2), caption_ids=[0]))
    with pytest.raises(RunError, match="1 caption_ids for 2 images"):
        captions_of(few, read_captions(captions))

    good = write_run(tmp_path / "good", pictures(1), caption_ids=[0])
    (tmp_path / "labels.json").write_text('{"annotations": [{"id": 1}]}')
    for arguments, reason in [
        (["--captions", tmp_path / "none.json", "--clip-model", model], "does not exist"),
        (["--captions", model / "model.safetensors", "--clip-model", model], "is not JSON"),
        (["--captions", tmp_path / "labels.json", "--clip-model", model], "not COCO's caption file"),
        (["--captions", captions, "--clip-model", tmp_path / "none"], "does not exist"),
        (["--captions", captions, "--clip-model", good], "cannot load"),
    ]:
        assert eval_main(["clip", str(good), *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and reason in said and "Traceback" not in said
