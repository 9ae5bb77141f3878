"""The bundled demos, their plans, and the page that shows them."""

from pathlib import Path

import pytest
import torch

import ditfastattn
from calibration.cli import main
from ditfastattn.models import adapt
from eval.readme import render
from plans import Plan, PlanMismatch, load

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "plans" / "library").glob("*.json"))


def test_every_plan_that_ships_fits_its_demo() -> None:
    assert len(LIBRARY) >= 10
    pipes = {name: ditfastattn.load_pipeline(name) for name in ("demo", "demo-long")}
    for path in LIBRARY:
        ditfastattn.apply(pipes["demo-long" if path.name.startswith("demo-long") else "demo"], path).remove()


@pytest.mark.parametrize(("name", "labels", "steps"), [("demo", [0, 20], 3), ("demo-long", [20], 2)])
def test_an_uncompressed_plan_changes_no_pixel_of_a_demo(name: str, labels: list[int], steps: int) -> None:
    pipe = ditfastattn.load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(labels, num_inference_steps=steps, generator=generator, output_type="pt").images

    shipped = load("demo-dpm50-mrae-0.05")
    pipe.scheduler.set_timesteps(steps)
    sampler = shipped.sampler.model_copy(update={"timesteps": tuple(float(t) for t in pipe.scheduler.timesteps)})
    plan = Plan.full(model=adapt(pipe.transformer).spec(), sampler=sampler, guidance=shipped.guidance)
    expected = run()
    with ditfastattn.apply(pipe, plan):
        assert torch.equal(run(), expected)


def test_the_main_job_on_a_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--threshold", "0.05", "--steps", "4", "--n-calib", "2", "--device", "cpu", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert {path.name.removeprefix("demo-dpm4-mrae-0.05") for path in tmp_path.iterdir()} == {
        ".json",
        ".png",
        ".images.png",
        ".trace.jsonl",
    }
    pipe = ditfastattn.load_pipeline("demo")
    plan = tmp_path / "demo-dpm4-mrae-0.05.json"
    with (
        ditfastattn.apply(pipe, plan),
        pytest.raises(PlanMismatch, match="steps: the plan has 4, this sampler 50"),
    ):
        pipe([0], num_inference_steps=50)


def test_the_tables_of_the_readme_come_from_the_committed_results() -> None:
    page = (ROOT / "README.md").read_text()
    assert render(page) == page, "run python -m eval readme"
