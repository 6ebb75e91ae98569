"""Fine-tuning: LoRA, QLoRA and full. See README.md."""
