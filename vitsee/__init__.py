"""vitsee: see how vision models represent images."""

from vitsee.errors import Incomplete, UserError
from vitsee.given import Model
from vitsee.library import Comparison, Result, compare, load, run_experiment
from vitsee.parallel.interrupt import Interrupted

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "Incomplete",
    "Interrupted",
    "Model",
    "Result",
    "UserError",
    "compare",
    "load",
    "run_experiment",
]
