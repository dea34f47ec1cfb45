"""Log-probabilities in the two shapes of OpenAI: lists beside the text (completions), objects per token (chat)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastllm import AsyncLLM, Logprob

# JSON has no -inf; OpenAI writes this for tokens that cannot be.
LOWEST = -9999.0


def token_text(token: bytes) -> str:
    """A token as text; bytes that are not whole characters as OpenAI writes them."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _ranked(entry: Mapping[int, Logprob], count: int) -> list[tuple[int, Logprob]]:
    """The ``count`` most likely; the chosen token is in the entry too, whatever its rank."""
    top = [(token, lp) for token, lp in entry.items() if lp.rank is not None and lp.rank <= count]
    return sorted(top, key=lambda item: (item[1].rank or 0, item[0]))[:count]


def chat_logprobs(
    llm: AsyncLLM, token_ids: Sequence[int], entries: Sequence[Mapping[int, Logprob]], count: int
) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = llm.token_bytes(token)
        return {"token": token_text(data), "logprob": max(logprob, LOWEST), "bytes": list(data)}

    content = []
    for token, entry in zip(token_ids, entries, strict=True):
        item = one(token, entry[token].logprob)
        item["top_logprobs"] = [one(other, lp.logprob) for other, lp in _ranked(entry, count)]
        content.append(item)
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """``choices[].logprobs`` of a completion, piece by piece: offsets go on from piece to piece."""

    def __init__(self, llm: AsyncLLM, count: int, offset: int = 0) -> None:
        self._llm = llm
        self._count = count
        self._offset = offset

    def add(self, token_ids: Sequence[int], entries: Sequence[Mapping[int, Logprob] | None]) -> dict[str, Any]:
        """The next tokens; an entry is None for the first token of a prompt."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token, entry in zip(token_ids, entries, strict=True):
            text = token_text(self._llm.token_bytes(token))
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
            if entry is None:
                values.append(None)
                tops.append(None)
                continue
            values.append(max(entry[token].logprob, LOWEST))
            top = dict.fromkeys([other for other, _ in _ranked(entry, self._count)] + [token])
            tops.append({token_text(self._llm.token_bytes(t)): max(entry[t].logprob, LOWEST) for t in top})
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def joined(pieces: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """Pieces of CompletionLogprobs as one."""
    return {
        name: [item for piece in pieces for item in piece[name]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
