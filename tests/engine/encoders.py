"""Tiny random BERT models on disk with a tokenizer, in the layout of sentence-transformers; transformers' copies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefgh")]
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}


@dataclass(frozen=True)
class TinyEncoder:
    """A folder, and transformers' float64 model of it."""

    folder: Path
    reference: Any

    def hidden(self, ids: list[int]) -> torch.Tensor:
        """transformers' hidden states [time, hidden], float64."""
        with torch.no_grad():
            return self.reference(torch.tensor([ids])).last_hidden_state[0]


def make_encoder(folder: Path, seed: int = 0, pooling: str = "mean_tokens", **settings: Any) -> TinyEncoder:
    """Create a random encoder. `pooling`: the flag in 1_Pooling/config.json, without pooling_mode_."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(**(SHAPE | settings), attn_implementation="eager")
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    flags = {
        f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48} | flags))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    return TinyEncoder(folder, model.double())


def write_tokenizer(folder: Path) -> None:
    """Write a WordPiece tokenizer whose own truncation and padding, to 8 tokens, must have no effect."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
