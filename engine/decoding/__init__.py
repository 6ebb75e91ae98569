"""The decode loop, sampling and scoring."""
