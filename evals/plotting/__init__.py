"""The plots of python -m evals.plots, one file for each topic."""
