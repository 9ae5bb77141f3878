"""What changes a metric's number."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What changes a number; written into the result.

    Attributes:
        splits: of the Inception Score.
        seed: of the permutation before the splits, and of the subsets of the kernel distance.
        in_order: cut the splits in file order instead, as improved-gan and ADM do.
        subsets, subset_size: of the kernel distance.
        neighbours: k of precision and recall.
    """

    splits: int = 10
    seed: int = 0
    in_order: bool = False
    subsets: int = 100
    subset_size: int = 1000
    neighbours: int = 3
