"""Estimators, free of files and figures, with the options that choose tokens and remove outliers."""
