"""What the families share: sizes, the Llama names of attention and feed-forward weights, windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models.fills import Fill, matrix, vector
from fastllm.models.rope import LAYER_TYPES, Rope, context_length

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24


@dataclass(frozen=True)
class Sizes:
    """The sizes that every decoder has, under the names of the glossary."""

    hidden: int  # E
    heads: int  # H
    kv_heads: int  # G
    head_dim: int  # D
    ffn: int  # F
    vocab: int  # V
    layers: int
    eps: float
    tied: bool

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim


def read_sizes(config: Config, *, tied: bool = False, defaults: dict[str, Any] | None = None) -> Sizes:
    """`tied`: what tie_word_embeddings is when absent. `defaults`: of keys that published configs omit."""
    absent = defaults or {}

    def size(key: str, most: int = MAX_SIZE) -> int:
        given = {"default": absent[key]} if key in absent else {}
        return int(config.int(key, min=1, max=most, **given))

    hidden, heads = size("hidden_size"), size("num_attention_heads", 65536)
    kv_heads = config.int("num_key_value_heads", min=1, max=65536, default=absent.get("num_key_value_heads", heads))
    if heads % kv_heads != 0:
        raise config.wrong("num_key_value_heads", f"is {kv_heads}, which does not divide num_attention_heads = {heads}")
    head_dim = config.int("head_dim", min=1, max=1024, default=absent.get("head_dim"))
    if head_dim is None:
        if hidden % heads != 0:
            raise config.wrong("hidden_size", f"is {hidden}, not a multiple of num_attention_heads = {heads}")
        head_dim = hidden // heads
    if head_dim % 2 != 0:
        raise config.unsupported("head_dim", f"is {head_dim}; only even head sizes are supported")
    return Sizes(
        hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=size("intermediate_size"),
        vocab=size("vocab_size"), layers=size("num_hidden_layers", MAX_LAYERS),
        eps=config.float("rms_norm_eps", min=0.0, max=1.0, default=absent.get("rms_norm_eps", 1e-6)),
        tied=config.bool("tie_word_embeddings", default=tied),
    )  # fmt: skip


def layer_types(config: Config, num_layers: int, default: list[str]) -> list[str]:
    if config.optional("layer_types") is None:
        return default
    return config.strs("layer_types", num_layers, LAYER_TYPES)


def windows(config: Config, types: list[str], *, default: int | None = None) -> list[int]:
    """The window of each layer; 0 is the whole context."""
    if "sliding_attention" not in types:
        return [0] * len(types)
    given = {} if default is None else {"default": default}
    window = config.int("sliding_window", min=1, **given)
    return [window if kind == "sliding_attention" else 0 for kind in types]


def uniform_window(config: Config, num_layers: int, *, default: int | None = None) -> list[int]:
    """sliding_window for all layers, null for none. `default` holds when the key itself is absent."""
    window = config.int("sliding_window", min=1, default=None)
    if window is None and "sliding_window" not in config.values:
        window = default
    if window is not None and "full_attention" in config.optional("layer_types", []):
        raise config.unsupported("layer_types", f"mixes windows, which {config.architecture} does not have")
    return [window or 0] * num_layers


def silu() -> Any:
    return _core.ActivationSpec(kind=_core.Activation.SILU)


def dense(ffn_dim: int, activation: Any) -> Any:
    return _core.DenseFfnSpec(ffn_dim=ffn_dim, activation=activation)


def norm(sizes: Sizes, weight_offset: float = 0.0) -> Any:
    return _core.NormSpec(eps=sizes.eps, weight_offset=weight_offset)


def attention(sizes: Sizes, window: int, **fields: Any) -> Any:
    """AttentionSpec with the usual scale 1 / sqrt(D)."""
    return _core.AttentionSpec(**{
        "num_heads": sizes.heads, "num_kv_heads": sizes.kv_heads, "head_dim": sizes.head_dim,
        "scale": sizes.head_dim**-0.5, "window": window, **fields,
    })  # fmt: skip


def model(
    config: Config, sizes: Sizes, ropes: list[Rope], layers: list[Any], max_model_len: int | None, *,
    norm_offset: float = 0.0, **fields: Any,
) -> Any:  # fmt: skip
    """ModelSpec; the first rope is the one that sees the whole context."""
    context = context_length(config, ropes[0], max_model_len)
    return _core.ModelSpec(
        architecture=config.architecture, hidden_size=sizes.hidden, vocab_size=sizes.vocab,
        max_position=ropes[0].longest_context, tied_embeddings=sizes.tied, final_norm=norm(sizes, norm_offset),
        ropes=[rope.spec(context) for rope in ropes], layers=layers, **fields,
    )  # fmt: skip


# Names of Llama, which most families keep.


def embedding_fills(sizes: Sizes, body: str = "model.", head: str = "lm_head.weight") -> Iterator[Fill]:
    yield matrix("embed", f"{body}embed_tokens.weight", sizes.vocab, sizes.hidden)
    yield vector("final_norm", f"{body}norm.weight", sizes.hidden)
    if not sizes.tied:
        yield matrix("lm_head", head, sizes.vocab, sizes.hidden)


def attention_fills(
    sizes: Sizes, to: str, source: str, *, qkv_bias: bool = False, output_bias: bool = False
) -> Iterator[Fill]:
    row = 0
    for name, rows in (("q", sizes.q_dim), ("k", sizes.kv_dim), ("v", sizes.kv_dim)):
        yield matrix(f"{to}qkv", f"{source}{name}_proj.weight", rows, sizes.hidden, row)
        if qkv_bias:
            yield vector(f"{to}qkv_bias", f"{source}{name}_proj.bias", rows, row)
        row += rows
    yield matrix(f"{to}o", f"{source}o_proj.weight", sizes.hidden, sizes.q_dim)
    if output_bias:
        yield vector(f"{to}o_bias", f"{source}o_proj.bias", sizes.hidden)


def gated_fills(
    slots: tuple[str, str], source: str, ffn_dim: int, hidden: int, *, expert: int = 0,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[Fill]:  # fmt: skip
    """gate, up and down of a feed-forward network into the slots (gate_up, down)."""
    gate, up, down = (f"{source}{name}.weight" for name in names)
    yield matrix(slots[0], gate, ffn_dim, hidden, 0, expert)
    yield matrix(slots[0], up, ffn_dim, hidden, ffn_dim, expert)
    yield matrix(slots[1], down, hidden, ffn_dim, 0, expert)


def unused_head(sizes: Sizes) -> list[str]:
    """Some exporters write lm_head even when it is the embedding."""
    return [r"(language_model\.)?lm_head\.weight$"] if sizes.tied else []
