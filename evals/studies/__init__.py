"""Studies of many runs: the matrix of benchmarks and models, timing, and weight formats."""
