"""How checkpoints say that they embed texts."""

from __future__ import annotations

import json

import pytest

from engine.checkpoints.pooling import read_pooling
from engine.models.pooling import FIRST, LAST, MEAN, Pooling
from engine.runtime.errors import BareloopError


@pytest.fixture
def folder(tmp_path):
    """folder(pooling, *kinds, **files): a folder with the modules of these kinds, and other files."""

    def write(pooling, *kinds, **files):
        modules = [{"path": "1_Pooling" if kind == "Pooling" else "", "type": f"x.models.{kind}"} for kind in kinds]
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps(pooling))
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, MEAN),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, FIRST),
        ({"pooling_mode_lasttoken": True}, LAST),
        ({"pooling_mode": "mean", "embedding_dimension": 3}, MEAN),
        ({"pooling_mode": ["cls"]}, FIRST),
    ],
)
def test_the_mode_is_the_flag_or_the_name(folder, config, mode):
    assert read_pooling(folder(config, "Transformer", "Pooling")) == Pooling(mode, False, is_declared=True)


def test_length_prefix_case_and_normalization_are_read(folder):
    path = folder(
        {"pooling_mode_mean_tokens": True},
        *("Transformer", "Pooling", "Normalize"),
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
        tokenizer_config={"model_max_length": 512},
        config_sentence_transformers={"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    )
    pooling = read_pooling(path)
    assert pooling == Pooling(MEAN, True, 256, "query: ", True, True)
    assert pooling.prepare("Who?") == "query: who?"


def test_without_modules_it_is_the_normalized_mean_up_to_the_tokenizers_maximum(tmp_path):
    assert read_pooling(tmp_path) == Pooling()
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert read_pooling(tmp_path).max_length == 512
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert read_pooling(tmp_path).max_length is None


@pytest.mark.parametrize(
    ("config", "kinds", "message"),
    [
        ({"pooling_mode_max_tokens": True}, ("Pooling",), "pooling by 'pooling_mode_max_tokens' is not implemented"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, ("Pooling",), "is not implemented"),
        ({}, ("Pooling",), "pooling by 'none' is not implemented"),
        ({"pooling_mode": 3}, ("Pooling",), "pooling by '3'"),
        ({"pooling_mode": "mean"}, ("Pooling", "Dense"), "the module 'Dense' is not implemented"),
        ({"pooling_mode": "mean"}, ("Transformer",), "names no Pooling"),
    ],
)
def test_other_ways_are_refused_by_their_name(folder, config, kinds, message):
    with pytest.raises(BareloopError, match=message) as caught:
        read_pooling(folder(config, *kinds))
    assert "\n" not in str(caught.value)


def test_a_prompt_that_is_not_pooled_is_refused(folder):
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    path = folder(pooling, "Transformer", "Pooling", config_sentence_transformers=prompts)
    with pytest.raises(BareloopError, match="include_prompt = false is not implemented"):
        read_pooling(path)
    (path / "config_sentence_transformers.json").unlink()
    assert read_pooling(path).mode == MEAN


@pytest.mark.parametrize("name", [["query"], {}, 3, "number"])
def test_a_default_prompt_that_is_no_text_is_refused(folder, name):
    prompts = {"prompts": {"query": "query: ", "number": 3}, "default_prompt_name": name}
    path = folder({"pooling_mode": "mean"}, "Pooling", config_sentence_transformers=prompts)
    with pytest.raises(BareloopError, match=r"default_prompt_name = .* names no text") as caught:
        read_pooling(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_the_pooling_that_was_not_downloaded_is_named(folder):
    path = folder({}, "Pooling")
    (path / "1_Pooling/config.json").unlink()
    with pytest.raises(
        BareloopError, match=r"config\.json is missing, which modules\.json names; download the model again"
    ):
        read_pooling(path)


@pytest.mark.parametrize("length", ["x", -1, 0, True, []])
def test_a_maximum_that_is_no_number_of_tokens_is_refused(tmp_path, length):
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(BareloopError, match=r"max_seq_length = .* is not a number of tokens"):
        read_pooling(tmp_path)
