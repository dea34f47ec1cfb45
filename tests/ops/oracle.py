"""The operations in float64, and what tests share: devices, random inputs, tolerances by device, paged caches."""

import numpy as np
import tolerances
import torch
from devices import has_cuda

from fastllm import _core, ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = (*DTYPES, "int8", "fp8")


def device_names():
    cuda = ["cuda:emulated", *(["cuda"] if has_cuda() else [])]
    return ["reference", *(f"cpu:{level}" for level in _core.cpu_isa_levels()), *cuda]


def relative(device, *, weights=None):
    """`weights`: the type of the packed weight that activations meet."""
    if device.name == "reference":
        return tolerances.REFERENCE
    is_cuda = device.name.startswith("cuda")
    if weights == "bfloat16" and (is_cuda or device.name.endswith("bf16")):
        return tolerances.BF16_ACTIVATIONS
    if weights == "float16" and is_cuda:
        return tolerances.F16_ACTIVATIONS
    return tolerances.CPU


def attention_relative(device, dtype):
    """Of attention, for q, K and V of unit variance, K and V as the cache holds them."""
    if device.name == "reference":
        return tolerances.REFERENCE
    if device.name.startswith("cuda"):
        return tolerances.CUDA_ATTENTION[dtype]
    if dtype == "int8":
        return tolerances.CPU_ATTENTION_INT8
    if dtype == "bfloat16" and device.name.endswith("bf16"):
        return tolerances.CPU_ATTENTION_BF16
    return tolerances.CPU_ATTENTION


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def weight(rng, shape, dtype):
    """A random weight as torch tensor of dtype, and its exact values in float64."""
    w = torch.from_numpy(normal(rng, *shape)).to(DTYPES[dtype])
    return w, w.double().numpy()


def rounded(x, dtype, group=None):
    """x as a cache of that type holds it. int8, fp8: groups of the last dimension share a scale; None: all of it."""
    if dtype in ("int8", "fp8"):
        return rounded_codes(np.asarray(x, np.float32), dtype, group or x.shape[-1])
    return torch.from_numpy(np.ascontiguousarray(x)).to(DTYPES[dtype]).double().numpy()


def rounded_codes(x, dtype, group):
    largest = np.float32(127 if dtype == "int8" else 448)
    out = np.empty(x.shape)
    for begin in range(0, x.shape[-1], group):
        part = x[..., begin : begin + group]
        scale = torch.from_numpy(np.abs(part).max(-1, keepdims=True) / largest).bfloat16().float().numpy()
        codes = np.clip(part / np.where(scale > 0, scale, 1), -largest, largest)
        codes = np.rint(codes) if dtype == "int8" else torch.from_numpy(codes).to(torch.float8_e4m3fn).float().numpy()
        out[..., begin : begin + group] = np.where(scale > 0, codes * scale.astype(np.float64), 0)
    return out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated(kind, gate, up, alpha=1.702, limit=7.0):
    gate, up = np.asarray(gate, np.float64), np.asarray(up, np.float64)
    if kind == "silu":
        return gate * sigmoid(gate) * up
    if kind == "gelu_tanh":
        return torch.nn.functional.gelu(torch.from_numpy(gate), approximate="tanh").numpy() * up
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * sigmoid(alpha * gate) * (up + 1)


def attention(q, k, v, *, scale, window=0, softcap=0.0, sinks=None):
    """q [n, H, D] for the last n positions of k, v [length, G, D], float64. Also sum p |v|, the size of the terms."""
    n, num_heads, _ = q.shape
    length, num_kv_heads, _ = k.shape
    k = np.repeat(k, num_heads // num_kv_heads, axis=1)
    v = np.repeat(v, num_heads // num_kv_heads, axis=1)
    scores = np.einsum("nhd,lhd->nhl", q, k) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    position = np.arange(length - n, length)[:, None]
    seen = np.arange(length)[None, :] <= position
    if window:
        seen &= np.arange(length)[None, :] > position - window
    scores = np.where(seen[:, None, :], scores, -np.inf)
    extra = None if sinks is None else np.broadcast_to(sinks[None, :, None], (n, num_heads, 1))
    all_scores = scores if extra is None else np.concatenate([scores, extra], axis=-1)
    p = torch.softmax(torch.from_numpy(all_scores), dim=-1).numpy()[..., :length]
    return np.einsum("nhl,lhd->nhd", p, v), np.einsum("nhl,lhd->nhd", p, np.abs(v))


class PagedSequences:
    """Sequences of random K/V stored in shuffled pages; every other page and slot holds NaN."""

    def __init__(self, rng, device, lengths, num_kv_heads, head_dim, dtype="float32"):
        self.kv = None
        self.lengths = lengths
        page_size = device.page_size
        pages = [-(-n // page_size) for n in lengths]
        num_pages = sum(pages) + 3
        self.kv = ops.KvCache(num_pages, num_kv_heads, head_dim, dtype=dtype, device=device)
        store(self.kv, np.full((num_pages * page_size, num_kv_heads, head_dim), np.nan, np.float32), None)
        order = rng.permutation(num_pages)
        self.block_table = np.full((len(lengths), max([*pages, 1])), -1, np.int32)  # unused entries are not read
        self.given_k, self.given_v = [], []
        self.k, self.v = [], []  # as the cache holds them
        for s, n in enumerate(lengths):
            mine, order = order[: pages[s]], order[pages[s] :]
            self.block_table[s, : pages[s]] = mine
            k, v = normal(rng, n, num_kv_heads, head_dim), normal(rng, n, num_kv_heads, head_dim)
            at = np.arange(n)
            store(self.kv, k, v, np.asarray(mine, np.int64)[at // page_size] * page_size + at % page_size)
            self.given_k.append(k.astype(np.float64))
            self.given_v.append(v.astype(np.float64))
            self.k.append(rounded(k, dtype, group=32))
            self.v.append(rounded(v, dtype))

    def attend(self, q, counts, seqs=None, context=None, **options):
        """q rows of the given sequences, counts[i] new tokens each."""
        seqs = list(range(len(self.lengths))) if seqs is None else seqs
        return ops.paged_attention(
            q,
            self.kv,
            query_start=np.cumsum([0, *counts]).astype(np.int32),
            context_len=np.array([self.lengths[s] for s in seqs] if context is None else context, np.int32),
            block_table=self.block_table[seqs],
            out=np.full(q.shape, np.nan, np.float32),
            **options,
        )


def store(kv, k, v, slots=None):
    slots = np.arange(len(k), dtype=np.int64) if slots is None else slots
    q = np.zeros((len(k), kv.num_kv_heads, kv.head_dim), np.float32)
    ops.rope_and_store(q, k, k if v is None else v, cos=None, sin=None, slots=slots, kv=kv)
