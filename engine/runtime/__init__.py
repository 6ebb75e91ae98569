"""What every layer of the engine stands on: devices, memory, clocks, files, errors."""
