"""The options of ``python -m eval token-order``."""

from pathlib import Path

from ditfastattn.console import Parser


def parser() -> Parser:
    parser = Parser(
        prog="python -m eval token-order",
        description="Does a window in another token order cost less accuracy at equal MACs?",
    )
    add = parser.add_argument
    add("--steps", type=int, default=50, help="of the trajectory on which losses are measured (default: %(default)s)")
    add("--every", type=int, default=6, help="measure losses at every so many steps (default: %(default)s)")
    add("--labels", type=int, default=2, help="how many (default: %(default)s)")
    add("--thresholds", type=float, nargs="*", default=[0.025, 0.05, 0.1], help="(default: 0.025 0.05 0.1)")
    add("--calibration-steps", type=int, default=10, help="of the calibrated plans (default: %(default)s)")
    add("--seed", type=int, default=0)
    add(
        "--out",
        type=Path,
        default=Path("runs/token-order"),
        help="folder for token_order.json and token_order.png (runs/token-order)",
    )
    return parser
