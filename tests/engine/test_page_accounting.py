"""Whatever requests do, every page comes back: random aborts in every state, dropped channels, close, n > 1.

`ABORTS=10000 pytest tests/engine/test_page_accounting.py` is the full count.
"""

import os
import random
import threading
import time
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from requests_mix import bits, idle_stats, ids

from fastllm import LLM, EngineClosedError, QueueFullError, SamplingParams, _core

ABORTS = int(os.environ.get("ABORTS", "10000"))
OPTIONS = {"max_model_len": 96, "num_threads": 1, "max_num_seqs": 8, "max_num_batched_tokens": 24}


def finish_counts(deltas, counts):
    for delta in deltas:
        if delta.finish_reason is not None:
            key = (delta.request_id, delta.index)
            counts[key] = counts.get(key, 0) + 1


@pytest.mark.parametrize("caching", [False, True])
def test_ten_thousand_random_aborts_leak_nothing(checkpoint, caching):
    source = random.Random(7 + caching)
    with LLM(
        checkpoint("llama-gqa"), **OPTIONS, kv_cache_tokens=320, enable_prefix_caching=caching, max_queue=256
    ) as llm:
        engine = llm._runtime.engine
        expected = bits(llm.generate([ids(1, 20)], SamplingParams(temperature=0, logprobs=1))[0])
        channel = engine.open_channel()
        open_sequences: dict[int, int] = {}
        ended: dict[tuple[int, int], int] = {}
        finished: list[int] = []

        def read(timeout):
            deltas = channel.poll(timeout)
            finish_counts(deltas, ended)
            for delta in deltas:
                if delta.finish_reason is not None:
                    open_sequences[delta.request_id] -= 1
                    if open_sequences[delta.request_id] == 0:
                        del open_sequences[delta.request_id]
                        finished.append(delta.request_id)

        num_aborts, submitted = 0, 0
        while num_aborts < ABORTS // 2:
            params = {"max_tokens": source.randint(1, 40), "n": source.choice((1, 1, 1, 2, 5)), "temperature": 1.0}
            try:
                prompt = ids(source.randrange(20), source.randint(1, 50))
                request = engine.submit(prompt, params, channel, source.randint(-1, 1))
            except QueueFullError:
                read(0.01)
                continue
            submitted += params["n"]
            open_sequences[request] = params["n"]
            kind = source.randrange(6)
            if kind == 0:  # before it is admitted, and twice
                engine.abort(request)
                engine.abort(request)
            elif kind == 1 and finished:
                engine.abort(source.choice(finished))
            elif kind == 2:
                engine.abort(source.choice((0, -1, 2**62, request + 1000)))
            else:  # some other one, wherever it is by now
                engine.abort(source.choice(list(open_sequences)))
            num_aborts += 1
            if source.random() < 0.3:
                read(0.0)
            if source.random() < 0.02:
                time.sleep(0.002)  # lets some of them decode
        deadline = time.monotonic() + 30
        while open_sequences:
            assert time.monotonic() < deadline, f"{len(open_sequences)} requests do not end"
            read(1.0)
        stats = idle_stats(llm)
        assert stats["num_requests_finished"] == stats["num_requests"]
        assert len(ended) == submitted and set(ended.values()) == {1}, "each sequence ends once"
        assert bits(llm.generate([ids(1, 20)], SamplingParams(temperature=0, logprobs=1))[0]) == expected


def fake_engine(**changes):
    values = {
        "num_pages": 64, "max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": 8, "max_logit_rows": 8,
        "max_queue": 64, "enable_prefix_caching": True, "seed": 0, "eos_ids": [], "byte_table": None, **changes,
    }  # fmt: skip
    return _core.make_fake_engine(_core.EngineConfig(**values), page_size=4, vocab_size=64)


@pytest.mark.parametrize("state", ["waiting", "prefill", "decode"])
def test_an_abort_takes_effect_within_one_step(state):
    engine, controls = fake_engine(max_num_seqs=1 if state == "waiting" else 8)
    controls.delay_us = 10_000
    channel = engine.open_channel()
    params = {"max_tokens": 60, "temperature": 0.0}
    if state == "waiting":
        engine.submit([1], params, channel)  # holds the only seat
    request = engine.submit([2] * (60 if state == "prefill" else 4), params, channel)
    if state == "decode":
        while not any(d.request_id == request for d in channel.poll(1.0)):
            pass
    else:
        time.sleep(0.025)
    steps = controls.num_steps
    engine.abort(request)
    tokens = 0
    while True:
        mine = [d for d in channel.poll(1.0) if d.request_id == request]
        tokens += sum(len(d.token_ids) for d in mine)
        if mine and mine[0].finish_reason is not None:
            break
    assert mine[0].finish_reason == "abort"
    # The step that was running, and at most the one that begins as its end is published.
    assert controls.num_steps - steps <= 2 and tokens <= 2
    engine.close()


def test_a_dropped_channel_ends_its_requests_wherever_they_are():
    engine, controls = fake_engine(max_num_seqs=2)
    controls.delay_us = 500
    channel = engine.open_channel()
    for _ in range(20):
        engine.submit([1, 2, 3], {"max_tokens": 100}, channel)
    time.sleep(0.01)
    del channel
    other = engine.open_channel()
    engine.submit([5], {"max_tokens": 2}, other)
    steps = controls.num_steps
    while not any(d.finish_reason for d in other.poll(2.0)):
        pass
    assert controls.num_steps - steps < 6, "nothing is generated for those who do not listen any more"
    deadline = time.monotonic() + 2
    while engine.stats()["num_pages_referenced"]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    engine.close()


def test_closing_during_a_storm_ends_everything_once():
    for seed in range(10):
        engine, controls = fake_engine(max_queue=1000)
        controls.delay_us = 100
        counts: dict[tuple[int, int], int] = {}
        accepted: dict[int, int] = {}

        def storm(seed, engine=engine, counts=counts, accepted=accepted):
            source = random.Random(seed)
            channel = engine.open_channel()
            mine = {}
            try:
                for _ in range(300):
                    n = source.choice((1, 3))
                    mine[engine.submit([1] * source.randint(1, 9), {"max_tokens": 20, "n": n}, channel)] = n
                    if source.random() < 0.3:
                        engine.abort(source.choice(list(mine)))
                    if source.random() < 0.2:
                        finish_counts(channel.poll(0.0), counts)
            except (EngineClosedError, QueueFullError):
                pass
            while not channel.is_closed or (deltas := channel.poll(0.0)):
                finish_counts(deltas if channel.is_closed else channel.poll(0.01), counts)
            accepted.update(mine)

        threads = [threading.Thread(target=storm, args=(seed * 10 + i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        engine.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert set(counts.values()) <= {1}
        assert len(counts) == sum(accepted.values()), "every sequence that was accepted has an end"
        stats = engine.stats()
        assert stats["num_pages_referenced"] == stats["num_running"] == stats["num_waiting"] == 0


class EngineMachine(RuleBasedStateMachine):
    """Random histories over the real engine with a tiny model and a pool for about three sequences."""

    folder = None  # set by the test
    alone: ClassVar[dict[str, object]] = {}

    @initialize(
        caching=st.booleans(), seqs=st.integers(1, 8), chunk=st.integers(1, 40), pages=st.integers(6, 24),
        threads=st.integers(1, 2),
    )  # fmt: skip
    def start(self, caching, seqs, chunk, pages, threads):
        self.llm = LLM(
            self.folder, max_model_len=96, max_num_seqs=seqs, max_num_batched_tokens=chunk, num_threads=threads,
            kv_cache_tokens=16 * pages, enable_prefix_caching=caching, max_queue=20,
        )  # fmt: skip
        self.engine = self.llm._runtime.engine
        self.channels = [self.engine.open_channel()]
        self.requests: dict[int, tuple] = {}  # id -> (key, channel number, RequestState)
        self.aborted: set[int] = set()
        self.is_open = True

    @rule(
        prompt=st.integers(0, 5), length=st.integers(1, 60), tokens=st.integers(1, 30), n=st.sampled_from([1, 1, 2, 4]),
        greedy=st.booleans(), priority=st.integers(-1, 1), channel=st.integers(0, 9),
    )  # fmt: skip
    def submit(self, prompt, length, tokens, n, greedy, priority, channel):
        number = channel % len(self.channels)
        params = SamplingParams(
            max_tokens=tokens, n=n, temperature=0.0 if greedy else 1.0, seed=prompt, ignore_eos=True, logprobs=0
        )
        try:
            state = self.llm._runtime.submit(ids(prompt, length), params, self.channels[number], priority=priority)
        except QueueFullError as error:
            assert "max_queue is 20" in str(error)
        except EngineClosedError:
            assert not self.is_open
        else:
            self.requests[state.request_id] = ((prompt, length, params), number, state)

    @rule(which=st.integers(0, 30))
    def abort_known(self, which):
        if self.requests:
            request = list(self.requests)[which % len(self.requests)]
            self.aborted.add(request)
            self.engine.abort(request)

    @rule(request=st.sampled_from([0, -5, 10**9, -(2**63), 2**63 - 1]))
    def abort_unknown(self, request):
        self.engine.abort(request)

    @rule(seconds=st.sampled_from([0.0, 0.0005, 0.003]))
    def poll(self, seconds):
        for channel in self.channels:
            for delta in channel.poll(seconds):
                _, number, state = self.requests[delta.request_id]
                assert self.channels[number] is channel
                assert state._completions[delta.index].finish_reason is None, "nothing comes after the end"
                state.add(delta)

    @rule()
    def open_channel(self):
        if self.is_open and len(self.channels) < 3:
            self.channels.append(self.engine.open_channel())

    @rule(number=st.integers(0, 2))
    def drop_channel(self, number):
        if len(self.channels) > 1 and number == len(self.channels) - 1:
            self.poll(0.0)
            self.channels.pop()
            self.requests = {i: r for i, r in self.requests.items() if r[1] != number}

    @rule(dice=st.integers(0, 19))
    def close(self, dice):
        if dice == 0:
            self.engine.close()
            self.is_open = False

    @invariant()
    def pages_add_up(self):
        if hasattr(self, "engine"):
            stats = self.engine.stats()
            total = stats["num_pages_free"] + stats["num_pages_cached"] + stats["num_pages_referenced"]
            assert total == stats["num_pages"]
            assert min(v for k, v in stats.items() if k.startswith("num_")) >= 0

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        deadline = time.monotonic() + 30
        while not all(state.finished for _, _, state in self.requests.values()):
            assert time.monotonic() < deadline, "a request does not end"
            self.poll(0.001)
        if self.is_open:
            idle_stats(self.llm)
        for request, (key, _, state) in self.requests.items():
            output = state.output()
            reasons = {c.finish_reason for c in output.outputs}
            if request in self.aborted or not self.is_open:
                assert reasons <= {"length", "abort", "error"}
                continue
            assert reasons == {"length"}
            if repr(key) not in self.alone:
                self.alone[repr(key)] = bits(self.reference.generate([ids(key[0], key[1])], key[2])[0])
            assert bits(output) == self.alone[repr(key)]
        self.llm.close()
        stats = self.engine.stats()
        assert stats["num_pages_referenced"] == stats["num_running"] == stats["num_waiting"] == 0


def test_random_histories(checkpoint):
    with LLM(checkpoint("llama-gqa"), max_model_len=96, num_threads=1, enable_prefix_caching=False) as reference:
        EngineMachine.folder, EngineMachine.reference = checkpoint("llama-gqa"), reference
        EngineMachine.TestCase.settings = settings(
            max_examples=120, stateful_step_count=40, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        EngineMachine.TestCase().runTest()


def test_the_counters_never_lose_sight_of_a_request():
    # Whoever waits for an idle engine must not see one between submission and the first step.
    engine, controls = fake_engine()
    controls.delay_us = 1000
    channel = engine.open_channel()
    for i in range(30):
        engine.submit([1], {"max_tokens": 2}, channel)
        while (stats := engine.stats())["num_requests_finished"] <= i:
            assert stats["num_waiting"] + stats["num_running"] > 0, stats
        while not any(d.finish_reason for d in channel.poll(1.0)):
            pass
    engine.close()
