"""The pictures of python -m evals.plots, a room for each kind."""
