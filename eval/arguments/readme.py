"""The options of ``python -m eval readme``."""

from ditfastattn.console import Parser


def parser() -> Parser:
    return Parser(
        prog="python -m eval readme",
        description="Write the result tables of README.md from the committed files in eval/results.",
    )
