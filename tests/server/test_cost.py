"""Cost per request: charges add up to the time that the engine worked; in usage, metrics and logs."""

import logging

import pytest
from serving import Serving, wait_for
from test_metrics import samples

from fastllm import LLM, InvalidRequestError, SamplingParams
from fastllm.server.config import ServerConfig
from fastllm.server.cost import Price
from fastllm.server.settings import read_prices

PRICE = Price("EUR", device_hour=3.6, kv_gib_hour=0.36)


@pytest.fixture(scope="module")
def server():
    with Serving(ServerConfig(port=0, prices={"fastllm-demo": PRICE})) as serving:
        yield serving
        serving.wait_until_idle()


def settle(server):
    """Requests are counted when their answer has been sent, so a client may be ahead of the counters."""
    wait_for(lambda: not server.server.server_state.tasks)
    server.wait_until_idle()


def idle_stats(llm):
    """The engine publishes its counters after it has handed over the last output."""
    wait_for(lambda: llm.info()["engine"]["num_running"] == 0)
    return llm.info()["engine"]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kv_cache_tokens", [8192, 512])  # the second preempts
def test_seconds_of_all_requests_add_up_to_the_wall_time(n, kv_cache_tokens):
    with LLM(max_num_seqs=16, max_model_len=512, kv_cache_tokens=kv_cache_tokens) as llm:
        params = [SamplingParams(max_tokens=20 + 7 * i, n=n, seed=i, ignore_eos=True) for i in range(24)]
        outputs = llm.generate([[40 + i % 5] * (8 + 5 * i) for i in range(24)], params)
        stats = idle_stats(llm)
    charged = sum(output.metrics.device_s for output in outputs)
    pages = sum(output.metrics.kv_page_s for output in outputs)
    assert charged == pytest.approx(stats["charged_s"], rel=1e-9)
    assert pages == pytest.approx(stats["kv_page_s"], rel=1e-9)
    # All arrive in one call and the engine never idles: from the first step to the last token is the wall time.
    # All parts of all steps, but the hand-over of the last one, which is nobody's and may take long on a busy machine.
    parts = stats["schedule_s"] + stats["forward_s"] + stats["sample_s"]
    assert parts <= charged + 1e-6 and charged <= parts + stats["hand_over_s"] + 1e-6
    assert all(output.metrics.device_s > 0 and output.metrics.kv_page_s > 0 for output in outputs)
    longest = max(output.metrics.total_s - output.metrics.queued_s for output in outputs)
    assert charged + stats["hand_over_s"] >= longest


def test_one_request_pays_for_all_of_its_time():
    with LLM(max_model_len=512, kv_cache_tokens=1024) as llm:
        (output,) = llm.generate("The os module", SamplingParams(max_tokens=400, ignore_eos=True))
        stats = idle_stats(llm)
    # From when it was scheduled to its last token: all but a part of one step's scheduling and of one hand-over.
    wall = output.metrics.total_s - output.metrics.queued_s
    assert wall - stats["hand_over_s"] <= output.metrics.device_s <= wall + stats["schedule_s"]
    assert output.metrics.kv_page_s == pytest.approx(stats["kv_page_s"])


def test_usage_has_the_cost_where_asked(server):
    body = {"prompt": "The os module", "max_tokens": 20, "ignore_eos": True}
    assert "cost" not in server.post("/v1/completions", body)[1]["usage"]
    cost = server.post("/v1/completions", {**body, "include_cost": True})[1]["usage"]["cost"]
    assert cost["device_seconds"] > 0 and cost["kv_byte_seconds"] > 0 and cost["currency"] == "EUR"
    want = cost["device_seconds"] * 1e-3 + cost["kv_byte_seconds"] / 2**30 * 1e-4
    assert cost["amount"] == pytest.approx(want)
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "include_cost": True}
    events = server.events("/v1/chat/completions", {**chat, "stream_options": {"include_usage": True}})
    assert events[-1]["usage"]["cost"]["device_seconds"] > 0


def test_metrics_and_logs_add_up(server, caplog):
    settle(server)
    before = samples(server)
    with caplog.at_level(logging.INFO, logger="fastllm.server.request"):
        for i in range(3):
            server.post("/v1/completions", {"prompt": ["The os", f"A {i}"], "n": 2, "max_tokens": 30})
        settle(server)
    after = samples(server)

    def grown(name):
        return after[name] - before.get(name, 0)

    device_s = grown("fastllm:request_device_seconds_total")
    assert device_s == pytest.approx(grown("fastllm:engine_busy_seconds_total"), rel=0.01)
    records = [record.fields for record in caplog.records if record.fields["path"] == "/v1/completions"]
    assert len(records) == 3
    assert sum(fields["device_seconds"] for fields in records) == pytest.approx(device_s)
    assert sum(fields["amount"] for fields in records) == pytest.approx(
        grown("fastllm:request_cost_total{currency=EUR}")
    )
    parts = [grown(f"fastllm:engine_step_seconds_total{{part={part}}}") for part in
             ("schedule", "forward", "sample", "hand_over")]  # fmt: skip
    assert all(part > 0 for part in parts)
    assert grown("fastllm:engine_read_bytes_total") > grown("fastllm:engine_steps_total") * 8e6  # 4 M bf16 weights


@pytest.mark.parametrize(
    "text",
    ["", "- a", "m: 3", "m: {device_hour: 1}", "m: {currency: EUR, x: 1}", "m: {currency: EUR, device_hour: -1}",
     "m: {currency: 'a b'}", "m: {currency: EUR, device_hour: .nan}", "1: {currency: EUR}"],
)  # fmt: skip
def test_a_wrong_price_table_is_refused(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=r"prices\.yaml"):
        read_prices(path)


def test_a_price_table_is_read(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("fastllm-demo: {currency: EUR, device_hour: 3.6, kv_gib_hour: 0.36}\n")
    assert read_prices(path) == {"fastllm-demo": PRICE}
    with pytest.raises(InvalidRequestError, match="other"):
        ServerConfig(prices={"other": PRICE})
