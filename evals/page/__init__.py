"""The page of python -m evals.report: its parts, its template, its script."""
