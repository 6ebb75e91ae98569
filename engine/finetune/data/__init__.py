"""The data of fine-tuning: rows of files or of SQuAD as token ids, of which some are learned."""

from engine.finetune.data.batching import batches
from engine.finetune.data.dataset import load_data
from engine.finetune.data.example import Dataset, Example
from engine.finetune.data.preview import preview

__all__ = ["Dataset", "Example", "batches", "load_data", "preview"]
