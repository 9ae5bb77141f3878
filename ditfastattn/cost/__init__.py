"""What a plan costs: MACs and bytes of attention by formula, microseconds of everything by measurement.

layer_work(cell, shape, window, itemsize)            by formula, one layer at one step
plan_work(plan, batch, itemsize)                     by formula, a whole run
table = measured(adapter, batch, runtime)            measured once on the model itself, kept on disk
table.times(site, cell), table.overhead              microseconds of a layer's cell, and of what no plan saves in a step
plan_time(plan, table)                               milliseconds of a run
"""

from ditfastattn.cost.eager import EagerParts
from ditfastattn.cost.formula import LayerShape, Work, layer_work, plan_work
from ditfastattn.cost.key import EAGER, TableKey
from ditfastattn.cost.measuring import measure
from ditfastattn.cost.predict import PlanTime, full_time, plan_time, predict
from ditfastattn.cost.prepared import PreparedParts
from ditfastattn.cost.runtimes import CAPTURED, COMPILED, measured, runtimes_on
from ditfastattn.cost.table import CostTable

__all__ = [
    "CAPTURED",
    "COMPILED",
    "EAGER",
    "CostTable",
    "EagerParts",
    "LayerShape",
    "PlanTime",
    "PreparedParts",
    "TableKey",
    "Work",
    "full_time",
    "layer_work",
    "measure",
    "measured",
    "plan_time",
    "plan_work",
    "predict",
    "runtimes_on",
]
