"""What attention costs: MACs and bytes by formula, microseconds by measurement.

layer_work(cell, shape, window, itemsize)            by formula, one layer at one step
plan_work(plan, batch, itemsize)                     by formula, a whole run
table = CostTable.of(adapter, batch, tokens)         measured once on the model's own block, kept on disk
plan_time(plan, table)                               milliseconds of a run's blocks
"""

from ditfastattn.cost.blocks import Prepare, eager_block, piece_block
from ditfastattn.cost.formula import LayerShape, Work, layer_work, plan_work
from ditfastattn.cost.predict import PlanTime, plan_time, predict
from ditfastattn.cost.table import CostTable, TableKey, measure

__all__ = [
    "CostTable",
    "LayerShape",
    "PlanTime",
    "Prepare",
    "TableKey",
    "Work",
    "eager_block",
    "layer_work",
    "measure",
    "piece_block",
    "plan_time",
    "plan_work",
    "predict",
]
