"""The papers' claims, each as a statistic with a threshold taken only from their text, a null and a premise.

One file per section, in the order of the papers. Sections and figures are those of Raghu et al. 2021 unless another
paper is named.
"""

from importlib import import_module

from vitsee.papers.verdicts import CLAIMS

__all__ = ["CLAIMS"]

for _section in (
    *("similarity", "attention", "receptive_fields", "skip_connections", "localization"),
    *("probes", "training", "later_papers"),
):
    import_module(f"{__name__}.{_section}")
