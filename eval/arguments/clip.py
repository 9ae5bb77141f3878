"""The options of ``python -m eval clip``."""

from pathlib import Path

from ditfastattn.console import Parser
from eval.arguments.common import DEVICE


def parser() -> Parser:
    p = Parser(
        prog="python -m eval clip",
        description="100 x cosine of CLIP's embeddings of each image and the caption it was made from, meant.",
        epilog="example:\n  python -m eval clip runs/pixart --clip-model openai/clip-vit-large-patch14",
    )
    p.add_argument("run", type=Path, help="a folder of python -m eval sample --prompts")
    p.add_argument(
        "--captions", type=Path, help="of a run that records caption_ids alone: COCO's captions_val2014.json"
    )
    p.add_argument("--clip-model", required=True, metavar="M", help="folder or hub id of a CLIP model")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--device", help=DEVICE)
    p.add_argument("--out", type=Path, help="the JSON file to write (default: RUN/clip.json)")
    return p
