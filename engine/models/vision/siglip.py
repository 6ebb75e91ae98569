"""The vision tower (SigLIP, Zhai et al. 2023) and the connector of Idefics3 and SmolVLM.

pixels -> patches -> embedding + position -> n x ( x + attention(norm(x));  x + mlp(norm(x)) ) -> norm
       -> pixel shuffle -> projection -> vectors in place of the language model's embeddings
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from engine.layers.bidirectional import Batch, BidirectionalAttention
from engine.layers.linear import Embedding, Linear
from engine.layers.mlp import MLP
from engine.layers.norms import LayerNorm, add_and_norm
from engine.models.family import Cost
from engine.runtime.device import upload

CHANNELS = 3
DOWN_ROWS = 256  # of a product in oneDNN from the MLP's width: four of them take two thirds of the time of one of 1,024


@dataclass(frozen=True)
class VisionConfig:
    """The shape of a vision tower. `image_size` and `patch_size`: sides of a tile and of a patch, in pixels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    activation: str
    norm_eps: float

    @property
    def side(self) -> int:
        """Patches along a side of a whole tile; pixels beyond the last whole patch are not used."""
        return self.image_size // self.patch_size


class VisionBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention = BidirectionalAttention(config.hidden_size, config.num_heads)
        self.attention_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.activation, bias=True)
        self.mlp_norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, delta: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
        """x [N, hidden], to which the block before adds `delta` -> new x and delta."""
        x, normed = add_and_norm(x, delta, self.attention_norm)
        x, normed = add_and_norm(x, self.attention(normed, [batch]), self.mlp_norm)
        return x, self._mlp(normed)

    def _mlp(self, x: Tensor) -> Tensor:
        """The MLP, whose second product is computed in pieces where it is oneDNN's."""
        if self.mlp.activation != "gelu_tanh":
            return self.mlp(x)
        hidden, down = self.mlp.up.gelu(x), self.mlp.down
        if not down.is_onednn(hidden):
            return down(hidden)
        return torch.cat([down(piece) for piece in torch.split(hidden, DOWN_ROWS)])


class VisionTower(nn.Module):
    """Tiles of pixels -> hidden states of their patches, which attend to all patches of the same tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = Linear(CHANNELS * config.patch_size**2, config.hidden_size, bias=True)
        self.positions = Embedding(config.side**2, config.hidden_size)
        self.layers = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [T, 3, H, W] in the tower's dtype, H and W up to a tile's -> [T, patches, hidden]."""
        size, (tiles, _, height, width) = self.config.patch_size, pixels.shape
        rows, columns = height // size, width // size
        grid = pixels[:, :, : rows * size, : columns * size].view(tiles, CHANNELS, rows, size, columns, size)
        x = self.patches(grid.permute(0, 2, 4, 1, 3, 5).reshape(tiles * rows * columns, -1))
        places = position_places(rows, columns, self.config.side)
        x = (x.view(tiles, rows * columns, -1) + self.positions(upload(places, torch.long, x.device))).flatten(0, 1)
        batch, delta = Batch(slice(0, len(x)), tiles, rows * columns), None
        for block in self.layers:
            x, delta = block(x, delta, batch)
        return add_and_norm(x, delta, self.norm)[1].view(tiles, rows * columns, -1)


class Connector(nn.Module):
    """Pixel shuffle (Shi et al. 2016): a square of neighbouring patches becomes one vector; then a projection."""

    def __init__(self, config: VisionConfig, scale: int, hidden_size: int) -> None:
        super().__init__()
        self.scale = scale
        self.projection = Linear(config.hidden_size * scale**2, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, side², D] of whole tiles -> [T, side² / scale², hidden]."""
        tiles, patches, width = x.shape
        scale, side = self.scale, int(patches**0.5)
        squares = x.view(tiles, side // scale, scale, side // scale, scale, width).transpose(2, 3)
        return self.projection(squares.reshape(-1, scale**2 * width)).view(tiles, patches // scale**2, -1)


def position_places(rows: int, columns: int, side: int) -> Tensor:
    """Indices [rows * columns] into the positions of side x side patches, for an image of this many patches.

    A patch gets the position in which its relative place falls; rounded as in transformers, which computes in float32.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.float32)

    def buckets(count: int) -> Tensor:
        places = torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor(count))
        return torch.bucketize(places.clamp(max=1.0 - 1e-6), boundaries, right=True)

    return (buckets(rows)[:, None] * side + buckets(columns)).flatten()


def tile_costs(tower: VisionTower, connector: Connector) -> Iterator[Cost]:
    """Parameters, bytes and FLOPs of computing the vectors of one tile, by part."""
    config = tower.config
    blocks = cast("list[VisionBlock]", list(tower.layers))
    patches, width = config.side**2, config.hidden_size
    embedding = Cost.of_weights("patches and positions", [tower.patches, tower.positions])
    yield replace(embedding, flops=2 * patches * tower.patches.rows * tower.patches.columns)
    for part, modules in (
        ("attention projections", [block.attention for block in blocks]),
        ("MLP", [block.mlp for block in blocks]),
        ("norms", [tower.norm, *(norm for block in blocks for norm in (block.attention_norm, block.mlp_norm))]),
    ):
        cost = Cost.of_weights(part, modules)
        yield replace(cost, flops=cost.flops * patches)
    yield Cost(f"attention among {patches:,} patches", 0, 0, 4 * patches**2 * width * config.num_layers)
    cost = Cost.of_weights("connector", [connector])
    yield replace(cost, flops=cost.flops * (patches // connector.scale**2))
