"""The options of ``python -m eval table1``."""

from pathlib import Path

from ditfastattn.console import Parser
from ditfastattn.schedules import USUAL_STEPS
from eval.arguments.common import DEVICE, DTYPES, INCEPTION, LITE0
from eval.paper import NAMES, TABLE_1_DIT


def parser() -> Parser:
    p = Parser(
        prog="python -m eval table1",
        description="Calibrates a plan for each threshold, samples the uncompressed model and every plan, measures all "
        "of them against real images and writes the report. Every stage is a command of its own, shown "
        "before it runs; one that is done with the same settings is skipped, and one that was killed goes "
        "on where it stopped.",
        epilog="examples:\n"
        "  python -m eval table1 --model facebook/DiT-XL-2-512 --imagenet ILSVRC2012/train --processes 8 --compile\n"
        "  python -m eval table1 --model facebook/DiT-XL-2-512 --imagenet VIRTUAL_imagenet512.npz\n"
        "  python -m eval table1 ... --sampler iddpm --steps 250 --guidance 1.5 --out table5    the paper's Table 5\n"
        "  python -m eval table1 --model demo --imagenet emoji --n 64 --steps 4 --network efficientnet-lite0",
    )
    add = p.add_argument
    add(
        "--model",
        default="facebook/DiT-XL-2-512",
        help='hub id, folder, .pt, "demo" or "demo-long" (default: %(default)s)',
    )
    add("--imagenet", type=Path, required=True, help="real images: a folder (ADM's centre crop), an ADM .npz, or the "
        "file of python -m eval stats")  # fmt: skip
    add("--n", type=int, default=50000, help="images of each run (default: %(default)s)")
    add("--thresholds", nargs="+", default=list(NAMES[1:]), metavar="T", help="default: D1 to D6")
    add("--sampler", default=TABLE_1_DIT.sampler, choices=list(USUAL_STEPS), help="default: %(default)s")
    add("--steps", type=int, default=TABLE_1_DIT.steps, help="default: %(default)s")
    add("--guidance", type=float, default=TABLE_1_DIT.guidance, help="default: %(default)s")
    add("--n-calib", type=int, default=8, help="labels to calibrate on (default: %(default)s, as the authors' script)")
    add("--network", default=INCEPTION, help=f"{INCEPTION} (the default), {LITE0}, or module:callable")
    add("--weights", type=Path, help="Inception's weights")
    add("--lpips", default="auto", metavar="auto|none|FILE", help="as in python -m eval similarity")
    add("--vae", help="of a .pt checkpoint")
    add("--seed", type=int, default=0)
    add("--dtype", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    add("--batch", type=int, help="images drawn together (default: that of python -m eval sample)")
    add("--compile", action="store_true", help="compile the model for sampling")
    add("--format", default="png", choices=["png", "npz"], help="of the samples (default: %(default)s)")
    add("--device", help=DEVICE)
    add("--processes", type=int, default=1, help="GPUs of this host to calibrate and sample on (default: 1)")
    add("--out", type=Path, default=Path("table1"), help="folder (default: %(default)s)")
    return p
