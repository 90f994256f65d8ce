"""Tables of many runs: which arms, which runs they share, what came out, and how much of it is noise."""

from .pages import markdown, write
from .plan import Data, Plan, Step, Wanted, plan
from .results import ArmResult, SeedResult, TableResult, collect
from .tables import TABLES, Arm, Base, Table, read_base, read_table

__all__ = [
    "TABLES",
    "Arm",
    "ArmResult",
    "Base",
    "Data",
    "Plan",
    "SeedResult",
    "Step",
    "Table",
    "TableResult",
    "Wanted",
    "collect",
    "markdown",
    "plan",
    "read_base",
    "read_table",
    "write",
]
