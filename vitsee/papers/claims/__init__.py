"""The papers' claims, each as a statistic with a threshold taken only from their text, a null and a premise."""

from vitsee.papers.claims.similarity import CLAIMS

__all__ = ["CLAIMS"]
