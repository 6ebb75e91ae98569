"""SmolVLM and Idefics3 against transformers in float64: tower, connector, logits; files, formats, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine import LLM, kernels
from engine.cache.state import Step, StepImages
from engine.cli.inspection import SAMPLE, inspect
from engine.layers.linear import Linear
from engine.models import configure
from engine.models.vision.siglip import position_places
from engine.models.vision.smolvlm import SmolVLM
from engine.runtime.errors import BareloopError
from tests.engine.models.vision.tiny import TinyVLM, pixels, tiny_checkpoint

VARIANTS = {
    "smolvlm": {},
    "idefics3": {"model_type": "idefics3"},
    "tied, pixels beyond the last patch, three by three": {
        "tie_word_embeddings": True,
        "tile": 38,
        "patch": 6,
        "scale": 3,
    },
    "other activation and eps, one head": {
        "vision": {"hidden_act": "gelu", "layer_norm_eps": 1e-3, "num_attention_heads": 1},
        "scale": 1,
    },
}
QUANTIZABLE = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_attention_heads": 8,
}  # for which all formats have groups
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=VARIANTS)
def tiny(request, tmp_path_factory) -> TinyVLM:
    return tiny_checkpoint(tmp_path_factory.mktemp("vlm") / "model", **VARIANTS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> TinyVLM:
    return tiny_checkpoint(tmp_path_factory.mktemp("vlm") / "model")


def load(tiny: TinyVLM, dtype: str = "float64", quant: str = "none") -> tuple[LLM, SmolVLM]:
    llm = LLM.load(tiny.folder, device="cpu", dtype=dtype, quant=quant)
    assert isinstance(llm.model, SmolVLM)
    return llm, llm.model


def prompt(tiny: TinyVLM, tiles: int) -> list[int]:
    """Ids with places for the vectors of this many tiles, between other tokens."""
    image = [tiny.image_token_id] * tiny.tokens_per_tile
    return [1, *(token for tile in range(tiles) for token in (20 + tile, *image, 40, 41)), 50]


def step(tiny: TinyVLM, ids: list[int], vectors: torch.Tensor) -> Step:
    places = [place for place, token in enumerate(ids) if token == tiny.image_token_id]
    return Step.pack([ids], images=StepImages(torch.tensor(places), vectors.flatten(0, 1)))


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of max(1, largest value)."""
    return float((actual.double() - expected).abs().max() / max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@torch.no_grad()
def test_tower_connector_and_logits_equal_those_of_transformers(tiny, dtype):
    _, model = load(tiny, dtype)
    tiles = pixels(3, tiny.tile)
    reference = tiny.reference.model
    expected = reference.vision_model(tiles.double()).last_hidden_state
    hidden = model.vision_tower(tiles.to(model.dtype))
    assert error(hidden, expected) <= TOLERANCE
    assert error(model.connector(hidden), reference.connector(expected)) <= TOLERANCE
    vectors = model.image_vectors(tiles)
    assert vectors.shape == (3, model.config.tokens_per_tile, 48)
    assert model.config.tokens_per_tile == tiny.tokens_per_tile
    ids = prompt(tiny, 3)
    logits = model.logits(model(step(tiny, ids, vectors)))
    expected = tiny.logits(ids, tiles)
    assert error(logits, expected) <= TOLERANCE
    assert error(logits, tiny.logits(ids)) > 100 * TOLERANCE  # the images matter


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 32), (24, 16), (32, 27), (9, 31)])
@torch.no_grad()
def test_images_smaller_than_a_tile_get_the_positions_of_transformers(plain, height, width):
    _, model = load(plain)
    image = pixels(2, 32)[:, :, :height, :width]
    expected = plain.reference.model.vision_model(image.double()).last_hidden_state
    assert error(model.vision_tower(image.double()), expected) <= TOLERANCE


@torch.no_grad()
def test_positions_of_every_grid_are_those_of_transformers():
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionConfig, SmolVLMVisionEmbeddings

    for side in (1, 2, 7, 16, 26, 27, 32, 49, 63):
        embeddings = SmolVLMVisionEmbeddings(SmolVLMVisionConfig(hidden_size=1, image_size=side, patch_size=1))
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight.copy_(torch.arange(side**2)[:, None])
        for rows, columns in {(side, side), (1, side), (side, 1 + side // 2), (1 + side // 3, max(1, side - 1))}:
            mask = torch.ones(1, rows, columns, dtype=torch.bool)
            expected = embeddings(torch.zeros(1, 3, rows, columns), mask).flatten().long()
            assert torch.equal(position_places(rows, columns, side), expected), (rows, columns, side)


@torch.no_grad()
def test_a_prompt_in_pieces_and_decoded_tokens_equal_the_whole(plain):
    """Prefill with images, then single tokens, which the C++ kernels for whole blocks compute if they are there."""
    kernels.wait()
    _, model = load(plain, "float32")
    tiles = pixels(2, plain.tile)
    ids = prompt(plain, 2)
    state = model.new_state()
    row = state.acquire()
    image = model.image_vectors(tiles).flatten(0, 1)
    logits, done = [], 0
    for end in (3, 9, len(ids) - 3, *range(len(ids) - 2, len(ids) + 1)):
        piece = ids[done:end]
        places = [place for place, token in enumerate(piece) if token == plain.image_token_id]
        used = sum(token == plain.image_token_id for token in ids[:done])
        images = StepImages(torch.tensor(places), image[used : used + len(places)]) if places else None
        logits.append(model.logits(model(Step.pack([piece], [row], [done], images=images), state)))
        done = end
    assert error(torch.cat(logits), plain.logits(ids, tiles)) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_the_vectors_of_a_tile_have_the_same_bits_beside_any_others(plain, dtype):
    _, model = load(plain, dtype)
    tiles = pixels(4, plain.tile)
    together = model.image_vectors(tiles)
    for tile in range(4):
        assert torch.equal(model.image_vectors(tiles[tile : tile + 1])[0], together[tile])
    before = together.clone()
    model.pack(1)
    assert torch.equal(model.image_vectors(tiles), before)
    assert error(together, model_vectors(plain, tiles)) <= (TOLERANCE if dtype == "float32" else 0.03)


@torch.no_grad()
def test_in_bfloat16_gelu_is_rounded_once_where_onednn_has_it(tmp_path):
    """At sizes of more than one piece: 24 x 24 patches."""
    tiny = tiny_checkpoint(tmp_path / "model", tile=192, scale=4)
    _, model = load(tiny, "bfloat16")
    tiles = pixels(1, 192)
    vectors = model.image_vectors(tiles)
    assert error(vectors, model_vectors(tiny, tiles)) <= 0.03
    up, x = model.vision_tower.layers[0].mlp.up, pixels(1, 192).view(-1, 32).bfloat16()
    exact = torch.nn.functional.gelu(torch.nn.functional.linear(x.double(), up.weight.double(), up.bias.double()))
    assert error(up.gelu(x), exact) <= 2**-8


@torch.no_grad()
def model_vectors(tiny: TinyVLM, tiles: torch.Tensor) -> torch.Tensor:
    """transformers' vectors [T, tokens, hidden], float64."""
    vectors = tiny.reference.model.get_image_features(tiles.double()[None]).pooler_output
    return torch.cat(vectors).view(len(tiles), tiny.tokens_per_tile, -1)


def test_a_saved_model_has_the_same_tensors_and_files(tiny, tmp_path):
    llm, _ = load(tiny, "float32")
    llm.save(tmp_path / "saved")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny.folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for path in tiny.folder.glob("*.json"):
        assert json.loads(path.read_text()) == json.loads((tmp_path / "saved" / path.name).read_text()), path.name


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
@torch.no_grad()
def test_quantized_formats_leave_the_tower_as_it_is(tmp_path, quant):
    if quant == "nf4":
        pytest.importorskip("bitsandbytes")
    plain = tiny_checkpoint(tmp_path / "model", text=QUANTIZABLE)
    llm, model = load(plain, "float32", quant)
    tiles = pixels(2, plain.tile)
    dense = load(plain, "float32")[1].image_vectors(tiles)
    assert torch.equal(model.image_vectors(tiles), dense)
    quantized = [
        module for module in model.layers.modules() if isinstance(module, Linear) and module.format is not None
    ]
    assert len(quantized) == 4 * model.config.num_layers
    ids = prompt(plain, 2)
    logits = model.logits(model(step(plain, ids, dense)))
    assert error(logits, plain.logits(ids, tiles)) <= 0.5
    llm.save(tmp_path / "saved")
    again = LLM.load(tmp_path / "saved", device="cpu").model
    assert isinstance(again, SmolVLM)
    assert torch.equal(again.image_vectors(tiles), dense)
    assert torch.equal(again.logits(again(step(plain, ids, dense))), logits)


def test_gradients_of_the_tower_after_inference(plain):
    _, model = load(plain, "float32")
    with torch.inference_mode():
        model.image_vectors(pixels(1, plain.tile))
    model.connector.projection.weight.requires_grad_(True)
    model.vision_tower.positions.weight.requires_grad_(True)
    model.image_vectors(pixels(1, plain.tile)).sum().backward()
    assert model.vision_tower.positions.weight.grad is not None


def test_random_weights_from_a_config(plain):
    llm = LLM.from_config(json.loads((plain.folder / "config.json").read_text()), seed=3)
    assert isinstance(llm.model, SmolVLM)
    with torch.inference_mode():  # what is kept then is no obstacle
        llm.model.image_vectors(pixels(1, plain.tile))
    vectors = llm.model.image_vectors(pixels(1, plain.tile))
    vectors.square().sum().backward()
    assert all(parameter.grad is not None for parameter in llm.model.vision_tower.parameters())
    assert bool(vectors.isfinite().all())


def test_inspection_counts_the_tower_and_a_tile(tiny):
    from rich.console import Console

    console = Console(width=150, record=True)
    for table in inspect(str(tiny.folder)):
        console.print(table)
    text = console.export_text()
    parameters = sum(parameter.numel() for parameter in tiny.reference.parameters())
    assert f"{parameters:,}" in text
    assert f"one tile of an image: {tiny.tile} x {tiny.tile} pixels, {tiny.tokens_per_tile} tokens" in text
    model = load(tiny)[1]
    tower = sum(cost.parameters for cost in model.tile_costs())
    parts = (tiny.reference.model.vision_model, tiny.reference.model.connector)
    assert tower == sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert sum(cost.parameters for cost in model.costs(10)) == parameters


def test_flops_of_a_tile_are_those_that_torch_counts(plain):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.reference.model.get_image_features(pixels(1, plain.tile).double()[None])
    assert sum(cost.flops for cost in load(plain)[1].tile_costs()) == counter.get_total_flops()


def base(**changes) -> dict:
    text = {key: value for key, value in SAMPLE.items() if key != "image_token_id"}
    vision = {"hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    return {"model_type": "smolvlm", "text_config": text, "vision_config": vision, "image_token_id": 3} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": 3}, "scale_factor = 3 does not divide the 4 patches"),
        ({"image_token_id": 32}, "image_token_id = 32 is beyond the vocabulary of 32 tokens"),
        ({"text_config": {"model_type": "qwen2"}}, "text_config of config.json: model_type = 'qwen2'"),
        ({"text_config": [1]}, r"text_config = \[1\] is not an object"),
        ({"text_config": SAMPLE | {"sliding_window": 4}}, "text_config of config.json: sliding_window = 4"),
        ({"vision_config": {"num_channels": 1}}, "vision_config of config.json: num_channels = 1"),
        ({"vision_config": {"hidden_size": 30}}, "hidden_size = 30 is not a multiple of 16"),
        ({"vision_config": {"patch_size": 300}}, "patch_size = 300 exceeds image_size = 224"),
        ({"vision_config": {"hidden_act": "tanh"}}, "hidden_act = 'tanh' is not implemented"),
    ],
)
def test_configs_that_are_not_implemented_are_refused_by_name(changes, message):
    with pytest.raises(BareloopError, match=message):
        configure(base(**changes))


def test_keys_that_transformers_leaves_out_have_its_defaults():
    from transformers import SmolVLMConfig

    _, ours = configure({"model_type": "smolvlm", "vision_config": {"patch_size": 28}, "image_token_id": 7})
    theirs = SmolVLMConfig(vision_config={"patch_size": 28})
    text = theirs.text_config
    assert (ours.tie_word_embeddings, ours.scale_factor) == (theirs.tie_word_embeddings, theirs.scale_factor)
    assert (ours.vocab_size, ours.hidden_size, ours.intermediate_size, ours.max_position_embeddings) == (
        *(text.vocab_size, text.hidden_size, text.intermediate_size, text.max_position_embeddings),
    )
    assert (ours.num_layers, ours.num_heads, ours.num_kv_heads, ours.norm_eps) == (
        *(text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.rms_norm_eps),
    )
    vision = theirs.vision_config
    assert (ours.vision.hidden_size, ours.vision.intermediate_size, ours.vision.image_size) == (
        *(vision.hidden_size, vision.intermediate_size, vision.image_size),
    )
    assert (ours.vision.num_layers, ours.vision.num_heads, ours.vision.activation, ours.vision.norm_eps) == (
        *(vision.num_hidden_layers, vision.num_attention_heads, vision.hidden_act, vision.layer_norm_eps),
    )


def test_a_text_model_takes_no_images():
    _, config = configure({"model_type": "llama"} | SAMPLE)
    assert config.image_token_id is None
    assert config.tokens_per_tile == 0


def test_the_folder_of_a_checkpoint_has_what_images_need(plain, tmp_path: Path):
    from engine.checkpoints.hub import FILES

    wanted = {"preprocessor_config.json", "processor_config.json", "chat_template.json"}
    assert wanted <= set(FILES)
    assert wanted <= {path.name for path in plain.folder.iterdir()}
