"""LoRA adapters in peft's files: their config, the modules that they change, loading, saving and merging."""
