"""Files to parameters: the hub, safetensors, pickles, quantized folders; loading and saving."""
