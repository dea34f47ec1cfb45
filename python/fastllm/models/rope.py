"""Rotary position embeddings: config.json -> inverse frequencies and the scale of cos and sin.

Each step is rounded to float32 where transformers' modeling_rope_utils rounds, so that the angles agree. Powers are
taken in float64 and rounded once, which is what a correctly rounded powf gives.

Dynamic NTK and longrope depend on the length reached so far in transformers, so that an answer there depends on how a
prompt was cut. Here both are fixed by max_model_len: dynamic NTK takes the base of that length, longrope its long
factors if max_model_len exceeds the original context and its short factors otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.errors import InvalidRequestError

Floats = npt.NDArray[np.float32]
MAX_POSITION = 2**31 - 2
LAYER_TYPES = ("full_attention", "sliding_attention")
KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class Rope:
    """The rotation that config.json describes, before a context length is chosen."""

    kind: str
    theta: float
    rotary_dim: int
    max_position: int  # max_position_embeddings
    values: Config  # the object with the parameters of `kind`
    original_max: int  # context of the pretraining, for yarn, llama3 and longrope
    max_is_scaled: bool = False  # max_position counts the scaling already (Gemma 3)

    @property
    def longest_context(self) -> int:
        """Positions that the scaled rotation covers."""
        if self.max_is_scaled:
            return self.max_position
        if self.kind in ("linear", "dynamic"):
            return min(int(self.max_position * self._factor()), MAX_POSITION)
        if self.kind == "yarn":
            return min(max(self.max_position, int(self.original_max * self._yarn_factor())), MAX_POSITION)
        return self.max_position

    def _factor(self) -> float:
        return float(self.values.float("factor", min=1.0, max=1e6))

    def _yarn_factor(self) -> float:
        return float(self.values.float("factor", min=1.0, max=1e6, default=self.max_position / self.original_max))

    def spec(self, max_model_len: int) -> Any:
        """_core.RopeSpec for a context of max_model_len."""
        inv_freq, scale = getattr(self, f"_{self.kind}")(max_model_len)
        return _core.RopeSpec(inv_freq=inv_freq.astype(np.float32).tolist(), scale=float(scale))

    def _powers(self, base: float) -> Floats:
        """base ** (2 i / dim), i < dim / 2."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        powers = np.float64(np.float32(base)) ** exponents.astype(np.float64)
        return powers.astype(np.float32)

    def _default(self, max_model_len: int) -> tuple[Floats, float]:
        return np.float32(1.0) / self._powers(self.theta), 1.0

    def _linear(self, max_model_len: int) -> tuple[Floats, float]:
        return self._default(0)[0] / np.float32(self._factor()), 1.0

    def _dynamic(self, max_model_len: int) -> tuple[Floats, float]:
        factor, dim = self._factor(), self.rotary_dim
        if dim <= 2:
            raise self.values.unsupported(
                "rope_type", f"is dynamic with {dim} rotated dimensions, more than 2 are needed"
            )
        stretch = factor * max(max_model_len, self.max_position) / self.max_position - (factor - 1)
        return np.float32(1.0) / self._powers(self.theta * stretch ** (dim / (dim - 2))), 1.0

    def _yarn(self, max_model_len: int) -> tuple[Floats, float]:
        v, dim, factor = self.values, self.rotary_dim, self._yarn_factor()

        def mscale(weight: float) -> float:
            return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

        weight, weight_all = (v.float(key, min=0.0, max=1e6, default=0.0) for key in ("mscale", "mscale_all_dim"))
        implied = mscale(weight) / mscale(weight_all) if weight and weight_all else mscale(1.0)
        scale = v.float("attention_factor", min=1e-6, max=1e6, default=implied)

        def correction_dim(rotations: float) -> float:
            return dim * math.log(self.original_max / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))

        low = correction_dim(v.float("beta_fast", min=1e-6, max=1e6, default=32.0))
        high = correction_dim(v.float("beta_slow", min=1e-6, max=1e6, default=1.0))
        if v.bool("truncate", default=True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001  # as transformers: no division by zero
        ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        keep = np.float32(1.0) - np.clip(ramp, np.float32(0.0), np.float32(1.0))
        powers = self._powers(self.theta)
        extrapolated = np.float32(1.0) / powers
        interpolated = np.float32(1.0) / (np.float32(factor) * powers)
        return interpolated * (np.float32(1.0) - keep) + extrapolated * keep, scale

    def _llama3(self, max_model_len: int) -> tuple[Floats, float]:
        v, factor = self.values, np.float32(self._factor())
        low = v.float("low_freq_factor", min=1e-6, max=1e6)
        high = v.float("high_freq_factor", min=1e-6, max=1e6)
        if not low < high:
            raise v.wrong("high_freq_factor", f"is {high:g}, expected more than low_freq_factor = {low:g}")
        inv_freq = self._default(0)[0]
        wavelength = np.float32(2 * math.pi) / inv_freq
        long, short = wavelength > self.original_max / low, wavelength < self.original_max / high
        scaled = np.where(long, inv_freq / factor, inv_freq)
        smooth = (np.float32(self.original_max) / wavelength - np.float32(low)) / np.float32(high - low)
        blended = (np.float32(1.0) - smooth) * scaled / factor + smooth * scaled
        return np.where(~long & ~short, blended, scaled), 1.0

    def _longrope(self, max_model_len: int) -> tuple[Floats, float]:
        v, original = self.values, self.original_max
        factor = v.float("factor", min=1e-6, max=1e6, default=self.max_position / original)
        implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 and original > 1 else 1.0
        scale = v.float("attention_factor", min=1e-6, max=1e6, default=implied)
        key = "long_factor" if max_model_len > original else "short_factor"
        stretch = np.asarray(v.floats(key, self.rotary_dim // 2, min=1e-6, max=1e6), dtype=np.float32)
        return np.float32(1.0) / (stretch * self._powers(self.theta)), scale


def read_rope(
    config: Config, head_dim: int, *, default_theta: float = 10000.0, layer_type: str | None = None,
    partial: bool = False, default: dict[str, Any] | None = None, aliases: dict[str, str] | None = None,
    max_is_scaled: bool = False,
) -> Rope:  # fmt: skip
    """The rotation of config.json in either form: rope_scaling + rope_theta, or rope_parameters (per layer type).

    `partial`: the family rotates only partial_rotary_factor of a head. `default`: parameters when the config has none.
    `aliases`: other spellings of a rope type.
    """
    values = _parameters(config, layer_type, default)
    theta = values.float("rope_theta", min=1.0001, max=1e12, default=None)
    if theta is None:
        theta = config.float("rope_theta", min=1.0001, max=1e12, default=default_theta)
    kind = values.str("rope_type", "type", default="default")
    kind = (aliases or {}).get(kind, kind)
    if kind not in KINDS:
        raise values.unsupported("rope_type", f"is {kind[:100]!r} ({', '.join(KINDS)} are known)")

    fraction = values.float("partial_rotary_factor", min=1e-6, max=1.0, default=None)
    if fraction is None:
        fraction = config.float("partial_rotary_factor", min=1e-6, max=1.0, default=1.0)
    if fraction != 1.0 and not partial:
        raise config.unsupported("partial_rotary_factor", f"is {fraction:g}; {config.architecture} rotates whole heads")
    rotary_dim = int(head_dim * fraction)
    if rotary_dim < 2 or rotary_dim % 2 != 0:
        raise config.unsupported(
            "partial_rotary_factor" if partial else "head_dim",
            f"gives {rotary_dim} rotated dimensions, an even number is needed",
        )

    max_position = config.int("max_position_embeddings", min=1, max=MAX_POSITION)
    original = config.int("original_max_position_embeddings", min=1, max=MAX_POSITION, default=None)
    if original is None:  # a value outside the rope parameters wins, as in transformers
        original = values.int("original_max_position_embeddings", min=1, max=MAX_POSITION, default=max_position)
    return Rope(kind, theta, rotary_dim, max_position, values, original, max_is_scaled)


def _parameters(config: Config, layer_type: str | None, default: dict[str, Any] | None) -> Config:
    key = "rope_scaling" if config.optional("rope_scaling") else "rope_parameters"
    values = config.section(key)
    if values is None:
        return Config(default or {}, config.where, "rope_parameters.")
    if not any(name in values.values for name in LAYER_TYPES):
        return values
    if layer_type is None:
        raise config.unsupported(key, f"differs between layer types; {config.architecture} has one rotation")
    return values.section(layer_type) or Config({}, config.where, f"{key}.{layer_type}.")


def context_length(config: Config, rope: Rope, max_model_len: int | None) -> int:
    """max_model_len, or the longest context of the model. Longer than the rotations were made for is refused."""
    longest = rope.longest_context
    if max_model_len is None:
        return longest
    if not 1 <= max_model_len <= longest:
        raise InvalidRequestError(
            f"max_model_len = {max_model_len} is outside [1, {longest}], the context that {config.where} allows"
        )
    return max_model_len
