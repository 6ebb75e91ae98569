"""The parts of `bench.gpu_check`: what is checked and measured on a GPU, and the report."""
