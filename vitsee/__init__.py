"""vitsee: see how vision models represent images."""

from vitsee.errors import Incomplete, UserError
from vitsee.given import Model
from vitsee.library import Comparison, Result, compare, load, run_experiment
from vitsee.parallel.interrupt import Interrupted
from vitsee.version import __version__

__all__ = [
    "Comparison",
    "Incomplete",
    "Interrupted",
    "Model",
    "Result",
    "UserError",
    "__version__",
    "compare",
    "load",
    "run_experiment",
]
