"""The server's state: the engine, what it was told, and whether it is ready."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

from fastllm import AsyncLLM, SamplingParams
from fastllm.server.bandwidth import BandwidthShare
from fastllm.server.config import ServerConfig
from fastllm.server.filters import FilterChain
from fastllm.server.observer import Observer
from fastllm.server.openai.reasoning import BEGIN, END
from fastllm.server.openai.tools import Style, tool_style

if TYPE_CHECKING:
    from fastllm.server.tracing import Tracing


@dataclasses.dataclass(slots=True)
class ServerState:
    """One per app."""

    llm: AsyncLLM
    config: ServerConfig
    observer: Observer
    tool_style: Style | None = None
    started: float = dataclasses.field(default_factory=time.time)
    is_ready: bool = False
    is_draining: bool = False
    num_requests: int = 0  # that were let in and are not answered yet
    max_model_len: int = 0
    max_num_seqs: int = 0
    page_bytes: int = 0
    literals: dict[str, str] = dataclasses.field(default_factory=dict)
    longest_step_s: float = 0.0
    bandwidth: BandwidthShare | None = None
    tracing: Tracing | None = None
    # The watchdog's view: counters at its last look, and since when they stand still while there is work.
    num_steps: int = -1
    still_since: float | None = None

    def __post_init__(self) -> None:
        info = self.llm.info()
        self.max_model_len = int(info["max_model_len"])
        self.max_num_seqs = int(info["max_num_seqs"])
        self.page_bytes = int(info["kv_page_bytes"])
        if self.config.memory_bandwidth is not None:
            self.bandwidth = BandwidthShare(self.config.memory_bandwidth)
        if self.config.tracer_provider is not None:
            from fastllm.server.tracing import Tracing

            self.tracing = Tracing(self.config.tracer_provider, with_content=self.config.trace_content)
        self.tool_style = tool_style(self.config.tool_call_parser, self.llm.chat_template)

    @property
    def filters(self) -> FilterChain | None:
        return self.config.filters

    @property
    def max_sequences(self) -> int:
        """Of one request."""
        return self.max_num_seqs * self.config.max_sequences_factor

    async def warm_up(self) -> None:
        """Ready means that a token has been generated."""
        # How grammars write markers: one that is a special token by its id, others as text. They are of chats: without
        # a tokenizer a model still serves token ids.
        style = self.tool_style
        has_chats = style is not None or self.llm.chat_template is not None
        for marker in (BEGIN, END, *((style.begin, style.end) if style else ())) if has_chats else ():
            ids = await self.llm.encode(marker, add_special_tokens=False)
            is_special = len(ids) == 1 and not self.llm.decode(ids, skip_special_tokens=True)
            self.literals[marker] = f"<[{ids[0]}]>" if is_special else json.dumps(marker)
        async for _ in self.llm.generate([0], SamplingParams(max_tokens=1, detokenize=False)):
            pass
        self.is_ready = True

    def look(self) -> None:
        """One look of the watchdog at the engine's counters."""
        stats = self.llm.stats()
        now = time.monotonic()
        if self.bandwidth is not None:
            self.bandwidth.add(now, stats)
        has_work = stats["num_running"] + stats["num_waiting"] > 0
        if stats["num_steps"] != self.num_steps or not has_work:
            if self.still_since is not None:
                self.longest_step_s = max(self.longest_step_s, now - self.still_since)
            self.num_steps, self.still_since = stats["num_steps"], now if has_work else None
        elif self.still_since is None:
            self.still_since = now

    def trouble(self) -> str | None:
        """Why the engine cannot serve, or None."""
        if self.llm.is_closed:
            return "the engine has stopped"
        stats = self.llm.stats()
        if stats["num_failed_steps_in_a_row"] >= 3:
            return "the engine's last steps have failed"
        self.look()
        # A large model on a small machine makes long steps: what it has shown to need is no standstill.
        limit = max(self.config.stall_timeout_s, 4 * self.longest_step_s)
        if self.still_since is not None and time.monotonic() - self.still_since > limit:
            return "the engine stands still"
        return None
