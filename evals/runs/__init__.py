"""Run files: written during a run, then loaded, grouped, summarized and exported."""
