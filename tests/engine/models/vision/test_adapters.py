"""Adapters of vision-language models: peft's, which may have the tower; ours, of the language half alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from engine import LLM
from engine.cache.state import Step, StepImages
from engine.checkpoints.adapters.config import LoraConfig
from engine.checkpoints.adapters.files import add_adapters, save_adapter
from engine.finetune.base import load_trainee
from engine.finetune.settings import Settings
from engine.models.vision.smolvlm import SmolVLM
from engine.runtime.errors import BareloopError
from tests.engine.models.vision.tiny import TinyVLM, pixels, tiny_checkpoint

peft = pytest.importorskip("peft")
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyVLM:
    return tiny_checkpoint(tmp_path_factory.mktemp("vlm") / "model")


def theirs(tiny: TinyVLM):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny.folder, dtype=torch.float32, attn_implementation="eager")


def randomize(model, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2, generator=generator)


@torch.no_grad()
def our_logits(model: SmolVLM, tiny: TinyVLM, tiles: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    count = len(tiles) * tiny.tokens_per_tile
    ids = [1, 20, *[tiny.image_token_id] * count, 21, 22]
    images = StepImages(torch.arange(2, 2 + count), model.image_vectors(tiles).flatten(0, 1))
    return ids, model.logits(model(Step.pack([ids], images=images)))


@torch.no_grad()
def their_logits(model, ids: list[int], tiles: torch.Tensor) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), pixel_values=tiles[None]).logits[0]


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize(
    "targets",
    [["q_proj", "v_proj", "down_proj"], ["q_proj", "out_proj", "fc1", "fc2", "connector.modality_projection.proj"]],
)
def test_an_adapter_of_peft_with_the_tower_is_applied_whole(tiny, tmp_path, targets, quant):
    model = peft.get_peft_model(theirs(tiny), peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets))
    randomize(model)
    model.save_pretrained(tmp_path / "adapter")
    assert any("vision_model" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32", adapter=tmp_path / "adapter", quant=quant)
    assert isinstance(llm.model, SmolVLM)
    tiles = pixels(2, tiny.tile)
    ids, logits = our_logits(llm.model, tiny, tiles)
    expected = their_logits(model, ids, tiles)
    scale = float(expected.abs().max())
    assert (logits - expected).abs().max() <= (2e-5 if quant == "none" else 0.2) * scale
    plain = their_logits(theirs(tiny), ids, tiles)
    assert (plain - expected).abs().max() > 0.2 * scale  # the adapter matters


def test_an_adapter_of_the_convolution_is_refused(tiny, tmp_path):
    model = peft.get_peft_model(theirs(tiny), peft.LoraConfig(r=3, target_modules=["patch_embedding", "q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(BareloopError, match=r"misshapen \(model\.vision_model\.embeddings\.patch_embedding"):
        LLM.load(tiny.folder, device="cpu", adapter=tmp_path / "adapter")


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "o_proj"), r".*(q|gate)_proj"])
def test_adapters_are_trained_on_the_language_half_alone(tiny, tmp_path, targets):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    config = LoraConfig(rank=2, targets=targets, base=str(tiny.folder))
    add_adapters(llm.model, llm.family, config)
    assert isinstance(llm.model, SmolVLM)
    trained = [name for name, parameter in llm.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.startswith("layers.") for name in trained)
    randomize_ours(llm.model)
    save_adapter(llm.model, llm.family, config, tmp_path / "adapter")
    tiles = pixels(2, tiny.tile)
    ids, logits = our_logits(llm.model, tiny, tiles)
    model = peft.PeftModel.from_pretrained(theirs(tiny), tmp_path / "adapter")
    assert not any("vision_model" in name for name, _ in model.named_parameters() if "lora_" in name)
    assert (logits - their_logits(model, ids, tiles)).abs().max() <= TOLERANCE * float(logits.abs().max())
    again = LLM.load(tmp_path / "adapter", device="cpu", dtype="float32")
    assert isinstance(again.model, SmolVLM)
    assert (our_logits(again.model, tiny, tiles)[1] - logits).abs().max() <= TOLERANCE * float(logits.abs().max())


def randomize_ours(model: SmolVLM) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2, generator=generator)


@pytest.mark.parametrize("targets", [("fc1",), ("q_proj", "out_proj"), ".*modality_projection.proj"])
def test_a_target_that_only_the_part_for_images_has_is_refused(tiny, targets):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    with pytest.raises(BareloopError, match="is in the part of this smolvlm model for images, which is not trained"):
        add_adapters(llm.model, llm.family, LoraConfig(rank=2, targets=targets))


def test_a_target_that_no_part_has_is_refused_as_such(tiny):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    with pytest.raises(BareloopError, match="the target 'nonsense' is no linear layer of this smolvlm model"):
        add_adapters(llm.model, llm.family, LoraConfig(rank=2, targets=("q_proj", "nonsense")))


def test_full_fine_tuning_leaves_the_tower_frozen(tiny):
    trainee = load_trainee(str(tiny.folder), Settings(method="full"), device="cpu")
    frozen = [name for name, parameter in trainee.model.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith(("vision_tower.", "connector.")) for name in frozen)
    assert sum(name.startswith(("vision_tower.", "connector.")) for name, _ in trainee.model.named_parameters()) == len(
        frozen
    )
