"""Read a config.json: typed access to its keys, in both of its dialects.

transformers 4 wrote `rope_theta`, `rope_scaling` and `torch_dtype`; version 5 writes `rope_parameters` and `dtype`.
`Keys` reads either, records which keys a family has read, and refuses unread keys that would change the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.layers.rope import RopeConfig
from engine.runtime.device import DTYPES
from engine.runtime.errors import BareloopError, quote

MAX_LAYERS = 1000
MAX_NUMBER = 1e12  # of any number in a config.json

# Keys that change the forward pass of some family, with the values at which they change nothing. A key that the
# current family does not read must have one of these values. (transformers ignores it silently.)
MATHEMATICS: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attention_bias": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "is_encoder_decoder": (False,),
    "layer_types": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "n_routed_experts": (0,),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "partial_rotary_factor": (1,),
    "qk_layernorm": (False,),
    "quantization_config": (),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rotary_pct": (1,),
    "sliding_window": (),
    "use_bidirectional_attention": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
}


class Keys:
    """The keys of one config.json: typed access with one-line errors, and a record of the keys that were read.

    null counts as absent, except where it means "none": `window`, `optional` and `token_ids`. `key_names` maps our
    names to the family's: {"hidden_size": "n_embd"}.
    """

    def __init__(self, raw: Mapping[str, Any], key_names: Mapping[str, str] | None = None) -> None:
        self.raw = raw
        self.key_names = key_names or {}
        self.read: set[str] = set()

    def name(self, name: str) -> str:
        """The family's name of a key. The key is recorded as read."""
        name = self.key_names.get(name, name)
        self.read.add(name)
        return name

    def check_both_names(self, name: str) -> None:
        """Refuse different values under our name and the family's. Both are recorded as read."""
        family_name = self.name(name)
        self.read.add(name)
        values = [self.raw[key] for key in dict.fromkeys((family_name, name)) if self.raw.get(key) is not None]
        if any(value != values[0] for value in values[1:]):
            raise BareloopError(
                f"config.json: {family_name} = {quote(values[0])} and {name} = {quote(values[1])}; remove one"
            )

    def has(self, name: str) -> bool:
        """Whether the key is present, even if null."""
        return self.name(name) in self.raw

    def _is_null(self, name: str) -> bool:
        """Whether the key is present and null."""
        return self.has(name) and self.get(name) is None

    def get(self, name: str, default: Any = None) -> Any:
        """The raw value; `default` if it is absent or null."""
        value = self.raw.get(self.name(name))
        return default if value is None else value

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = 2**24) -> int:
        """A whole number from `least` to `most`; required if there is no default."""
        value = self.get(name, default)
        name = self.name(name)
        if value is None:
            raise BareloopError(f"config.json has no {name}")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BareloopError(f"config.json: {name} = {quote(value)} is not a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number; required if there is no default."""
        return _number(self.get(name, default), self.name(name))

    def optional(self, name: str, default: float | None = None) -> float | None:
        """A positive finite number, or None: `default` if the key is absent, None if it is null."""
        value = None if self._is_null(name) else self.get(name, default)
        return None if value is None else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise BareloopError(f"config.json: {name} = {quote(value)} is neither true nor false")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """A string, one of `choices`."""
        value = self.get(name, default)
        if value not in choices:
            raise BareloopError(
                f"config.json: {self.name(name)} = {quote(value)} is not implemented; known: {', '.join(choices)}"
            )
        return str(value)

    def token_ids(self, name: str, default: int | None = None) -> tuple[int, ...]:
        """A token id, a list of them, or none (null); `default` if the key is absent."""
        value = self.get(name) if self.has(name) else default
        return token_ids(value, f"config.json: {name}")

    def layers(self) -> int:
        """The number of layers."""
        return self.integer("num_hidden_layers", most=MAX_LAYERS)

    def window(self, name: str, default: int) -> int | None:
        """A sliding window in tokens: `default` if the key is absent, None if it is null."""
        return None if self._is_null(name) else self.integer(name, default)

    def layer_types(self, default: Sequence[str]) -> Sequence[str]:
        """One of `full_attention`, `sliding_attention` per layer."""
        types, known = self.get("layer_types", default), ("full_attention", "sliding_attention")
        if not isinstance(types, Sequence) or len(types) != len(default) or any(kind not in known for kind in types):
            raise BareloopError(
                f"config.json: layer_types must name {len(default)} layers, each one of {', '.join(known)}"
            )
        return types

    def rotary_fraction(self, default: float) -> float:
        """The fraction of each head that is rotated.

        `rope_parameters.partial_rotary_factor` overrides the top-level key, as in transformers, whose 5.x versions
        may write the default at the top level beside the value in use.
        """
        nested = self.get("rope_parameters", {})
        inner = nested.get("partial_rotary_factor") if isinstance(nested, dict) else None
        outer = self.get("partial_rotary_factor", default)
        fraction = outer if inner is None else inner
        if _number(fraction, self.name("partial_rotary_factor")) > 1:
            raise BareloopError(f"config.json: {self.name('partial_rotary_factor')} = {quote(fraction)} exceeds 1")
        return float(fraction)

    def rope(
        self, max_position_embeddings: int, default_theta: float = 10_000.0, layer_type: str | None = None
    ) -> RopeConfig:
        """The rotary embedding, from `rope_parameters`, or from `rope_theta` and `rope_scaling`.

        `layer_type` selects an entry of `rope_parameters` if those differ by layer type.
        """
        outer_theta = self.number("rope_theta", default_theta)
        new, old = self.get("rope_parameters", {}), self.get("rope_scaling", {})
        if not isinstance(new, dict) or not isinstance(old, dict):
            raise BareloopError(f"config.json: rope_parameters = {quote(new or old)} is not an object")
        if new and old and new != old:
            raise BareloopError("config.json: rope_parameters and rope_scaling differ; remove one")
        values = new or old
        if values and all(isinstance(v, dict) for v in values.values()):
            first, *others = values.values()
            if layer_type is None and any(other != first for other in others):
                raise BareloopError("config.json: rope_parameters that differ by layer type are not implemented here")
            values = first if layer_type is None else values.get(layer_type, {})
        fraction_key = self.key_names.get("partial_rotary_factor", "partial_rotary_factor")
        if values.get("partial_rotary_factor", 1) != 1 and fraction_key not in self.read:  # by `rotary_fraction`
            raise BareloopError("config.json: rope_parameters.partial_rotary_factor is not implemented here")
        original = self.get("original_max_position_embeddings", values.get("original_max_position_embeddings"))

        def number(name: str, default: float | None = None) -> float | None:
            value = values.get(name)
            return default if value is None else _number(value, f"rope_parameters.{name}")

        theta = number("rope_theta", outer_theta) or outer_theta
        original = _number(original or max_position_embeddings, "original_max_position_embeddings")
        if theta <= 1 or original < 2:
            raise BareloopError(
                f"config.json: rope_theta = {theta:g} must exceed 1, and "
                f"original_max_position_embeddings = {original:g} must be 2 or more"
            )
        return RopeConfig(
            theta=theta,
            type=str(values.get("rope_type") or values.get("type") or "default"),
            max_position_embeddings=max_position_embeddings,
            original_max_position_embeddings=int(original),
            factor=number("factor"),
            attention_factor=number("attention_factor"),
            low_freq_factor=number("low_freq_factor", 1.0) or 1.0,
            high_freq_factor=number("high_freq_factor", 4.0) or 4.0,
            beta_fast=number("beta_fast", 32.0) or 32.0,
            beta_slow=number("beta_slow", 1.0) or 1.0,
            mscale=number("mscale"),
            mscale_all_dim=number("mscale_all_dim"),
            truncate=bool(values.get("truncate", True)),
        )

    def common(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `ModelConfig` that all families read in the same way, with the family's defaults."""
        bos = self.token_ids("bos_token_id", defaults.get("bos_token_id"))
        return {
            "model_type": str(self.get("model_type")),
            "vocab_size": self.integer("vocab_size"),
            "hidden_size": self.integer("hidden_size"),
            "num_layers": self.layers(),
            "tie_word_embeddings": self.flag("tie_word_embeddings", defaults.get("tie_word_embeddings", False)),
            "dtype": _dtype(self.get("dtype") or self.get("torch_dtype")),
            "bos_token_id": bos[0] if bos else None,
            "eos_token_ids": self.token_ids("eos_token_id", defaults.get("eos_token_id")),
            "initializer_range": self.number("initializer_range", 0.02),
            "raw": self.raw,
        }

    def refuse_unread(self) -> None:
        """Raise `BareloopError` for the first unread key that would change the mathematics."""
        model_type = self.raw.get("model_type")
        for name, neutral in MATHEMATICS.items():
            value = self.raw.get(name)
            if name in self.read or value is None or value in neutral:
                continue
            if name == "layer_types" and isinstance(value, list) and all(kind == "full_attention" for kind in value):
                continue
            if name == "quantization_config":
                method = value.get("quant_method", "unnamed") if isinstance(value, dict) else value
                raise BareloopError(
                    f"config.json: quantization_config ({method}) is not supported; use the unquantized checkpoint"
                )
            raise BareloopError(
                f"config.json: {name} = {quote(value)} is not implemented for model_type {quote(model_type)}; "
                "remove the key if the checkpoint was trained without it"
            )


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """A token id, a list of them, or None, as a tuple."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in ids):
        raise BareloopError(f"{name} = {quote(value)} is neither a token id nor a list of them")
    return tuple(ids)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_NUMBER:
        raise BareloopError(f"config.json: {name} = {quote(value)} is not a positive number up to {MAX_NUMBER:g}")
    return float(value)


def _dtype(value: Any) -> str | None:
    if value is None:
        return None
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise BareloopError(f"config.json: dtype = {quote(value)} is not implemented; known: {', '.join(DTYPES)}")
    return name
