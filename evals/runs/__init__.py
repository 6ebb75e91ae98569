"""Run files: written as a run goes, read back, summarized and exported."""
