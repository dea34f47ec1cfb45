"""/metrics: what existing dashboards ask for is there, and the counts are those of the requests."""

import json
import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Serving, wait_for

from fastllm import AsyncLLM
from fastllm.demo import DEMO_MODEL
from fastllm.server.bandwidth import BandwidthShare
from fastllm.server.config import ServerConfig
from fastllm.server.histogram import Histogram

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server():
    with Serving(ServerConfig(port=0, log_requests=False)) as serving:
        yield serving


MIXTURE = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 4096, "hidden_size": 64,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
    "rope_theta": 1e4, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture of experts with random weights, on a machine that reads 1 GB/s."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "config.json").write_text(json.dumps(MIXTURE))
    llm = AsyncLLM(str(folder), load_format="dummy", tokenizer=DEMO_MODEL, max_num_seqs=8, kv_cache_tokens=4096)
    with Serving(ServerConfig(port=0, log_requests=False, memory_bandwidth=1e9), llm=llm) as serving:
        yield serving


def samples(server):
    """name with labels (but the model's) -> value."""
    status, headers, data = server.request("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(data.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "model_name")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_counts_are_those_of_the_requests(server):
    server.wait_until_idle()  # the token of the start is counted after it was handed over
    before = samples(server)
    body = {"prompt": "The os module", "max_tokens": 10, "ignore_eos": True, "n": 2}
    start = time.monotonic()
    for stream in (False, True):
        server.request("POST", "/v1/completions", {**body, "stream": stream})
    seconds = time.monotonic() - start
    server.wait_until_idle()
    after = samples(server)

    def grown(name):
        return after[name] - before.get(name, 0)

    assert grown("vllm:generation_tokens_total") == 40
    assert grown("vllm:request_success_total{finished_reason=length}") == 4
    assert grown("vllm:time_to_first_token_seconds_count") == grown("vllm:e2e_request_latency_seconds_count") == 2
    assert 0 < grown("vllm:e2e_request_latency_seconds_sum") <= seconds
    assert grown("vllm:request_generation_tokens_sum") == 40
    # Tokens that come together have no time between them.
    assert grown("vllm:inter_token_latency_seconds_count") <= 38
    assert grown("vllm:request_params_n_bucket{le=2}") == 2
    assert grown("fastllm:http_requests_total{endpoint=/v1/completions,method=POST,status=200}") == 2
    assert after["vllm:num_requests_running"] == after["fastllm:kv_blocks_used"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert after["fastllm:kv_blocks_total"] * after["fastllm:kv_block_tokens"] == 8192
    assert after["process_resident_memory_bytes"] > 1e7


def test_what_does_not_end_well_is_counted_by_kind(server):
    before = samples(server)
    server.post("/v1/completions", {"prompt": "a", "telepathy": 1})
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 400, "n": 16, "request_timeout": 0.001})
    sock = server.send_head("/v1/completions", {"prompt": "a", "max_tokens": 450, "n": 16, "ignore_eos": True})
    sock.close()
    kinds = ("unsupported_parameter", "request_timeout", "disconnected")
    names = [f"fastllm:request_outcomes_total{{kind={kind}}}" for kind in kinds]
    # The request may reach the engine only after its client has left.
    wait_for(lambda: samples(server).get(names[-1], 0) == before.get(names[-1], 0) + 1)
    server.wait_until_idle()
    after = samples(server)
    assert [after[name] - before.get(name, 0) for name in names] == [1, 1, 1]
    assert after["vllm:request_success_total{finished_reason=abort}"] >= 2


def test_experts_and_the_share_of_the_bandwidth(mixture):
    wait_for(lambda: mixture.llm.expert_use().size)  # of the first token, at the start
    before = samples(mixture)
    prompts = [[5 + i] * 20 for i in range(3)]
    mixture.post("/v1/completions", {"prompt": prompts, "max_tokens": 11, "ignore_eos": True})
    wait_for(lambda: samples(mixture)["vllm:num_requests_running"] == 0)
    after = samples(mixture)
    for layer in range(2):
        names = [name for name in after if name.startswith("fastllm:expert_tokens_total") and f"layer={layer}" in name]
        assert len(names) == 5
        # The prompts, and the outputs but their last tokens, two experts each.
        assert sum(after[name] - before[name] for name in names) == 2 * 3 * (20 + 10)
    read = after["fastllm:engine_read_bytes_total"] - before["fastllm:engine_read_bytes_total"]
    forward = "fastllm:engine_step_seconds_total{part=forward}"
    assert after["fastllm:memory_bandwidth_bytes"] == 1e9
    # All steps of this server, if it is younger than the window.
    assert after["fastllm:memory_bandwidth_share"] > 0 and read > 0 and after[forward] > before[forward]


def test_the_share_is_of_the_steps_of_the_last_ten_seconds():
    share = BandwidthShare(100.0)
    assert share.share({"read_bytes": 50, "forward_s": 1.0}) == 0.5
    for second in range(30):
        share.add(float(second), {"read_bytes": 10 * second, "forward_s": 0.5 * second})
        share.add(second + 0.1, {"read_bytes": 1e9, "forward_s": 1.0})  # asked more often than once a second
    now = {"read_bytes": 10 * 29 + 30, "forward_s": 0.5 * 29 + 1.0}
    assert share.share(now) == pytest.approx((10 * 10 + 30) / (0.5 * 10 + 1.0) / 100)
    assert share.share({"read_bytes": 190, "forward_s": 0.5 * 19}) == 0.0


@pytest.mark.parametrize("path", sorted((ROOT / "dashboards").glob("*")), ids=lambda path: path.name)
def test_boards_and_alerts_ask_for_metrics_that_are_there(mixture, path):
    mixture.post("/v1/completions", {"prompt": "a", "telepathy": 1})
    mixture.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    wait_for(lambda: mixture.llm.expert_use().size)
    names = {re.sub(r"\{.*", "", name) for name in samples(mixture)}
    text = path.read_text()
    if path.suffix == ".json":
        board = json.loads(text)
        text = "\n".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
    asked = set(re.findall(r"\b(?:vllm|fastllm|process):?[a-z0-9_:]+", text))
    assert asked and asked <= names, asked - names


def test_the_dashboard_has_no_external_assets_and_its_numbers(server):
    status, headers, data = server.request("GET", "/dashboard")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.findall(rb"(?:src|href)=|https?://|@import", data)
    status, numbers = server.get("/dashboard/data")
    assert status == 200
    assert set(re.findall(rb"\bd\.(\w+)", data)) <= {name.encode() for name in numbers}
    assert all(0 < value < 60 for value in numbers["ttft_s"])


def test_percentiles_lie_in_their_bucket():
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.percentiles((0.5,)) == [None]
    for value in (0.5, 1.5, 1.5, 3.0, 100.0):
        histogram.add(value)
    low, middle, high = histogram.percentiles((0.1, 0.5, 0.99))
    assert 0 < low <= 1 < middle <= 2 and high == 4.0
    assert histogram.cumulative() == [("1.0", 1.0), ("2.0", 3.0), ("4.0", 4.0), ("+Inf", 5.0)]
    assert histogram.sum == pytest.approx(106.5)
