"""The page of python -m evals.report: tables, question browser, template, style and script."""
