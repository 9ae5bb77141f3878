"""The options of ``python -m eval sample``."""

from pathlib import Path

from calibration.run_arguments import add_parts, add_video, parse_negative, parse_seed
from ditfastattn.console import Parser
from ditfastattn.kernel_names import NAMES
from ditfastattn.schedules import USUAL_STEPS

LABELS = ("random", "balanced")
FORMATS = ("png", "npz", "gif", "mp4")  # the last two, and npz, of videos
EXAMPLES = """examples:
  python -m eval sample --n 64 --out runs/full                         the bundled demo, uncompressed
  python -m eval sample --n 64 --out runs/d2 --plan plans/library/demo-dpm50-mrae-0.05.json
  python -m eval sample --model facebook/DiT-XL-2-512 --n 50000 --out runs/d2 --plan d2.json --compile --dtype float16
  python -m eval sample --model PixArt-alpha/PixArt-Sigma-XL-2-1024-MS --prompts captions_val2014.json --n 30000 ...
  python -m eval sample --model opensora --prompts FILE --n 8 --out runs/videos --dtype bfloat16
  torchrun --nproc-per-node 8 -m eval sample --images 50000 --out runs/full   the same images, by 8 processes
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m eval sample ...
The same command goes on after an interruption, with any number of processes.
"""


def parser() -> Parser:
    p = Parser(
        prog="python -m eval sample",
        description="Samples exactly n images, or videos of a model that makes them. The noise and the label of image "
        "i depend on the seed and i alone, a prompt on i; its pixels not on the number of processes, nor on "
        "interruptions (but in their last bits on --batch).",
        epilog=EXAMPLES,
    )
    add = p.add_argument
    add_parts(p)
    add("--plan", type=Path, help="a plan file to follow (default: uncompressed)")
    # torchrun of Python 3.11 and 3.12 takes an argument --n for an abbreviation of its own, wherever it stands.
    add("--n", "--images", type=int, required=True, help="how many (under torchrun write --images)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run; goes on with what lies there")
    add(
        "--sampler", choices=list(USUAL_STEPS), help="default: the plan's, or dpm (DPM-Solver++ 2M), of Open-Sora iddpm"
    )
    add("--steps", type=int, help="sampler steps (default: the plan's, or 50; ddpm and iddpm 250, Open-Sora's iddpm "
        "200, heun 25)")  # fmt: skip
    add(
        "--guidance",
        type=float,
        metavar="S",
        help="guidance scale; 1 is none (default: the plan's, or 4; with prompts 4.5, Latte 7.5, Open-Sora 7)",
    )
    add("--labels", choices=LABELS, help="drawn independently, or equally many of each (default: random)")
    add("--prompts", type=Path, metavar="FILE", help="one a line, or COCO's captions_*.json; image i is of the i-th")
    add("--negative-prompt", type=parse_negative, metavar="TEXT", help="what guidance leads away from (default: none)")
    add_video(p)
    add("--seed", type=parse_seed, default=0, help="of noise and labels (default: 0)")
    add("--batch", type=int, help="drawn together (default: 8 on a CPU, 32 on a GPU; videos 1 and 4)")
    add("--dtype", default="float32", choices=["float32", "float16", "bfloat16"], help="default: float32")
    add("--device", help="cpu or cuda (default: cuda if there is one; each process takes a GPU of its own)")
    add("--kernel", default="auto", choices=NAMES, help="attention by (default: auto)")
    add("--compile", action="store_true", help="compile the model, and capture its steps as CUDA graphs on a GPU")
    add("--format", choices=FORMATS, help="a PNG each (default), or one .npz as ADM's and DiT's tools read it; videos: "
        "a GIF each (default), an MP4, or one .npz of all, which loses nothing")  # fmt: skip
    add("--latents", action="store_true", help="keep what the VAE was given, too: latents/000000.npy ...")
    return p
