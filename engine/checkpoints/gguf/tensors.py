"""The tensors of a GGUF file under the names and in the layout of a Hugging Face checkpoint.

They are dequantized while they are read, or their blocks are read as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.gguf.reader import GGUFFile, TensorInfo, block_size, package
from engine.checkpoints.tensor_file import Decoded, Stored

CHUNK = 2**18  # values that are dequantized at once

ATTENTION = {f"blk.*.attn_{x}": f"model.layers.*.self_attn.{x}_proj" for x in "qkv"}
LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    **ATTENTION,
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_norm",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    **{f"blk.*.ffn_{x}": f"model.layers.*.mlp.{x}_proj" for x in ("gate", "up", "down")},
}
NORMS_AFTER = {
    "blk.*.ffn_norm": "model.layers.*.pre_feedforward_layernorm",
    "blk.*.post_attention_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.post_ffw_norm": "model.layers.*.post_feedforward_layernorm",
}
PHI2 = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.final_layernorm",
    "output": "lm_head",
    **ATTENTION,
    "blk.*.attn_output": "model.layers.*.self_attn.dense",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.ffn_up": "model.layers.*.mlp.fc1",
    "blk.*.ffn_down": "model.layers.*.mlp.fc2",
}
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.h.*.ln_1",
    "blk.*.attn_qkv": "transformer.h.*.attn.c_attn",
    "blk.*.attn_output": "transformer.h.*.attn.c_proj",
    "blk.*.ffn_norm": "transformer.h.*.ln_2",
    "blk.*.ffn_up": "transformer.h.*.mlp.c_fc",
    "blk.*.ffn_down": "transformer.h.*.mlp.c_proj",
}
GPTNEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    "blk.*.attn_norm": "gpt_neox.layers.*.input_layernorm",
    "blk.*.attn_qkv": "gpt_neox.layers.*.attention.query_key_value",
    "blk.*.attn_output": "gpt_neox.layers.*.attention.dense",
    "blk.*.ffn_norm": "gpt_neox.layers.*.post_attention_layernorm",
    "blk.*.ffn_up": "gpt_neox.layers.*.mlp.dense_h_to_4h",
    "blk.*.ffn_down": "gpt_neox.layers.*.mlp.dense_4h_to_h",
}
MAMBA = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    "blk.*.attn_norm": "backbone.layers.*.norm",
    **{
        f"blk.*.ssm_{name}": f"backbone.layers.*.mixer.{module}"
        for name, module in (
            *(("in", "in_proj"), ("conv1d", "conv1d"), ("x", "x_proj"), ("dt", "dt_proj")),
            *(("a", "A_log"), ("d", "D"), ("out", "out_proj")),
        )
    },
}
NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "olmo2"), LLAMA | NORMS_AFTER),
    "phi2": PHI2,
    "gpt2": GPT2,
    "gptneox": GPTNEOX,
    "mamba": MAMBA,
}
ROPE_FREQS = "rope_freqs.weight"
IMAGE = ("v.", "mm.")  # the vision tower, which Ollama has in the same file
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # of GPT-2
NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)(\.weight|\.bias|)")


@dataclass(frozen=True)
class GGUFTensor(Decoded):
    """One tensor as a Hugging Face checkpoint has it, which reads as float32.

    Row i of it is row `rows[first + i]` of the file, or `first + i` without `rows`.
    """

    info: TensorInfo
    rows: Tensor | None = None
    values: Callable[[Tensor], Tensor] | None = None  # undoes the converter's change of the values
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        return self.info.nbytes * math.prod(self.shape) // math.prod(self.info.shape)

    def equals(self, other: Stored) -> bool:
        return isinstance(other, GGUFTensor) and self.info.kind == other.info.kind and super().equals(other)

    @property
    def has_blocks(self) -> bool:
        """Whether its rows are rows of the file, so that `blocks` can return them."""
        return not self.transposed and self.values is None and len(self.shape) == 2

    def blocks(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last` as the file has them: [n, bytes]."""
        return torch.from_numpy(self._packed_rows(self.first + first, self.first + last))

    def read_into(self, target: Tensor) -> None:
        """Dequantize into `target`, which has this shape, some rows at a time."""
        if self.transposed:
            original = torch.empty(self.shape[::-1])
            replace(self, shape=self.shape[::-1], transposed=False).read_into(original)
            target.copy_(original.T)
            return
        count = self.shape[0] if self._file_rows() > 1 else 1
        flat, step = target.view(count, -1), max(1, CHUNK * count // math.prod(self.shape))
        dequantize, kind = package().quants.dequantize, package().GGMLQuantizationType(self.info.kind)
        for begin in range(0, count, step):
            packed = self._packed_rows(self.first + begin, self.first + min(begin + step, count))
            tensor = torch.from_numpy(dequantize(packed, kind).astype("float32", copy=False))
            flat[begin : begin + step].copy_(tensor if self.values is None else self.values(tensor))

    def _packed_rows(self, first: int, last: int) -> Any:
        """Rows `first` to `last` of the tensor, which a conversion may have reordered, as `_packed` returns them."""
        if self.rows is None:
            return self._packed(first, last)
        rows = self.rows[first:last].numpy()
        lowest = rows.min()
        return self._packed(lowest, rows.max() + 1)[rows - lowest]

    def _file_rows(self) -> int:
        """Number of rows in the file. A vector has one value per row, unless it is quantized."""
        values_per_block, _ = block_size(self.info.kind, str(self.file.path))
        is_row = len(self.info.shape) > 1 or values_per_block > 1
        return math.prod(self.info.shape[:-1] if is_row else self.info.shape)

    def _packed(self, first: int, last: int) -> Any:
        """Rows `first` to `last` of the file: a numpy array [rows, bytes or plain numbers]."""
        import numpy

        types = package().GGMLQuantizationType
        dtype = numpy.dtype({types.F32: "<f4", types.F16: "<f2"}.get(types(self.info.kind), "u1"))
        size = self.info.nbytes // self._file_rows()
        content = numpy.empty((last - first, size), "u1")
        self.file.read(self.info.start + first * size, content.ravel().data)
        return content.view(dtype)


def checkpoint_tensors(file: GGUFFile, architecture: str, config: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors of one file by their names in a Hugging Face checkpoint, with the converter's changes undone.

    `config`: the content of config.json. Unknown tensors keep their names, and are reported as unexpected later.
    """
    result: dict[str, Stored] = {}
    for name, info in file.tensors.items():
        if name != ROPE_FREQS and not name.startswith(IMAGE):
            stored = GGUFTensor(file, torch.float32, info.shape, info.start, info)
            result |= _undo_conversion(name, stored, architecture, config)
    return result


def _undo_conversion(
    name: str, stored: GGUFTensor, architecture: str, config: Mapping[str, Any]
) -> dict[str, GGUFTensor]:
    match = NAME.fullmatch(name)
    number, part, leaf = match.groups() if match else (None, "", "")
    pattern = NAMES[architecture].get(f"blk.*.{part}" if number is not None else part)
    if architecture == "phi2" and part == "attn_qkv":  # older files have q, k and v in one
        size = stored.shape[0] // 3
        names = [f"model.layers.{number}.self_attn.{x}_proj{leaf}" for x in "qkv"]
        return {new: stored.row_range(i * size, (i + 1) * size) for i, new in enumerate(names)}
    if pattern is None:
        return {name: stored}
    new_name = pattern.replace("*", number or "") + leaf
    rows = stored.shape[0]
    if architecture == "llama" and part in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        if rows % (2 * heads) == 0:  # interleaved pairs of coordinates -> halves of a head
            order = torch.arange(rows).view(heads, -1, 2).transpose(1, 2).flatten()
            stored = replace(stored, rows=order)
    elif architecture == "gptneox" and part == "attn_qkv":
        heads = config["num_attention_heads"]
        if rows % (3 * heads) == 0:  # all q, all k, all v -> head by head
            stored = replace(stored, rows=torch.arange(rows).view(3, heads, -1).transpose(0, 1).flatten())
    elif architecture.startswith("gemma") and part.endswith("norm"):
        stored = replace(stored, values=lambda norm: norm - 1)
    elif architecture == "gpt2" and new_name.endswith(TRANSPOSED):
        stored = replace(stored, shape=stored.shape[::-1], transposed=True)
    elif part == "ssm_a":
        stored = replace(stored, values=lambda a: (-a).log())
    elif part == "ssm_conv1d" and leaf == ".weight" and len(stored.shape) == 2:
        stored = replace(stored, shape=(rows, 1, stored.shape[1]))
    return {new_name: stored}
