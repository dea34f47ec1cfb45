"""`fastllm bench serve`: what its clients see agrees with what the server counts, and its plans are what they say."""

import asyncio
import bisect
import json
import random
import statistics
import xml.dom.minidom

import pytest
from serving import Serving
from test_metrics import samples
from typer.testing import CliRunner

from fastllm.bench_serve.client import Record, Target, complete, drive
from fastllm.bench_serve.plot import svg
from fastllm.bench_serve.report import Objective, is_good, percentile, summarize
from fastllm.bench_serve.workloads import WORKLOADS, Planned, Sizes
from fastllm.cli import app
from fastllm.server.config import ServerConfig

SIZES = Sizes(max_model_len=512, num_requests=60, concurrency=16, seed=3, requests_per_s=50)


@pytest.fixture(scope="module")
def server():
    with Serving(ServerConfig(port=0, log_requests=False)) as serving:
        yield serving


def buckets(server, name):
    """(upper limits, cumulative counts) of one histogram."""
    found = [(key, value) for key, value in samples(server).items() if key.startswith(f"{name}_bucket")]
    pairs = sorted((float(key.split("le=")[1].rstrip("}").replace("+Inf", "inf")), value) for key, value in found)
    return [limit for limit, _ in pairs], [count for _, count in pairs]


@pytest.mark.parametrize("workload", ["W1", "W2"])
def test_histograms_agree_with_the_clients_clock_within_a_bucket(server, workload):
    names = {
        "ttft": "vllm:time_to_first_token_seconds",
        "itl": "vllm:inter_token_latency_seconds",
        "e2e": "vllm:e2e_request_latency_seconds",
    }
    before = {name: buckets(server, metric) for name, metric in names.items()}
    records = asyncio.run(drive(Target(server.url), WORKLOADS[workload](SIZES)[0]))
    server.wait_until_idle()
    assert {record.outcome for record in records} == {"ok"}
    seen = {
        "ttft": [record.ttft_s for record in records],
        "itl": [gap for record in records for gap in record.inter_token_s()],
        "e2e": [record.ended - record.sent for record in records],
    }
    for name, metric in names.items():
        limits, after = buckets(server, metric)
        counts = [now - then for now, then in zip(after, before[name][1], strict=True)]
        if name != "itl":  # tokens of one chunk have no time between them, and the two may cut chunks differently
            assert counts[-1] == len(seen[name])
        for share in (50, 90):
            of_server = bisect.bisect_left(counts, share / 100 * counts[-1])
            of_client = bisect.bisect_left(limits, percentile(seen[name], share))
            assert abs(of_server - of_client) <= 1, (name, share, limits[of_server], limits[of_client])


def test_plans_are_what_they_say():
    (mixed,) = WORKLOADS["W1"](SIZES)
    assert mixed == WORKLOADS["W1"](SIZES)[0]
    lengths = [planned.max_tokens for planned in mixed.requests]
    assert max(lengths) > 4 * statistics.median(lengths)
    for name, make in WORKLOADS.items():
        for workload in make(SIZES):
            for planned in workload.requests:
                assert 0 < len(planned.prompt) + planned.max_tokens <= SIZES.max_model_len, name
    for workload, share in zip(WORKLOADS["W2"](SIZES), (0.3, 0.6, 0.9), strict=True):
        rate = len(workload.requests) / workload.requests[-1].at_s
        assert 0.5 < rate / (share * SIZES.requests_per_s) < 2
    (shared,) = WORKLOADS["W3"](SIZES)
    assert len(shared.requests) == 100 and len({tuple(p.prompt[:256]) for p in shared.requests}) == 1
    assert len({tuple(p.prompt) for p in shared.requests}) == 100
    (leaving,) = WORKLOADS["W5"](SIZES)
    assert sum(planned.leave_after is not None for planned in leaving.requests) == 0.3 * SIZES.num_requests


def test_clients_that_leave_are_counted_as_such_and_free_their_pages(server):
    (workload,) = WORKLOADS["W5"](SIZES)
    records = asyncio.run(drive(Target(server.url), workload))
    summary = summarize(workload, records, Objective(60, 60))
    # The rest of an answer may be there before its client has left.
    assert summary["outcomes"].get("left", 0) + summary["outcomes"].get("ok", 0) == SIZES.num_requests
    assert summary["outcomes"]["ok"] >= 0.7 * SIZES.num_requests
    server.wait_until_idle()


def test_trouble_is_an_outcome_not_an_exception(server):
    def outcome(target, planned):
        return asyncio.run(complete(target, planned, 5)).outcome

    fits = Planned([50, 51], 4)
    assert outcome(Target(server.url), Planned([50] * 600, 4)) == "error: status 400"
    assert outcome(Target(server.url, model="nobody"), fits) == "error: status 404"
    assert outcome(Target("http://127.0.0.1:9"), fits).startswith("error: ")
    assert asyncio.run(complete(Target(server.url), Planned([50], 400), 0.001)).outcome.startswith("error: no end")


def test_goodput_counts_whole_requests_within_the_objective():
    def record(times, outcome="ok"):
        return Record(Planned([1], 9), 0.0, 9.0, [(t, i + 1) for i, t in enumerate(times)], outcome)

    objective = Objective(ttft_s=1.0, itl_s=0.11)
    assert is_good(record([0.9, 1.0, 1.1]), objective)
    assert not is_good(record([1.1, 1.15]), objective)
    assert not is_good(record([0.5, 1.0]), objective)
    assert not is_good(record([0.5, 0.6], "refused"), objective)
    two_in_one_chunk = Record(Planned([1], 3), 0.0, 1.0, [(0.5, 1), (0.7, 3)], "ok")
    assert two_in_one_chunk.inter_token_s() == pytest.approx([0.1, 0.1])


def test_percentiles_are_values_that_occurred():
    values = [random.Random(1).random() for _ in range(100)]
    assert percentile(values, 50) == sorted(values)[49] and percentile(values, 100) == max(values)
    assert percentile([], 50) is None


def test_the_command_prints_json_and_draws(server, tmp_path):
    plot = tmp_path / "latencies.svg"
    args = ["bench", "serve", "--url", server.url, "--requests", "10", "--workload", "w1", "--workload", "W4"]
    done = CliRunner().invoke(app, [*args, "--json", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    summaries = json.loads(done.stdout)
    assert [summary["workload"] for summary in summaries] == ["W1", "W4"]
    assert set(summaries[1]["groups"]) == {"long", "streams"}
    assert all(summary["outcomes"].keys() == {"ok"} for summary in summaries)
    assert xml.dom.minidom.parse(str(plot)).documentElement.tagName == "svg"
    assert svg([("nothing", [])]).startswith("<svg")
    shown = CliRunner().invoke(app, args)
    assert "goodput" in shown.stdout and "first token" in shown.stdout


def test_wrong_usage_of_the_command_ends_with_2(server):
    for args in (["--workload", "W9"], ["--url", "ftp://x"], ["--url", "http://127.0.0.1:9"],
                 ["--url", server.url, "--", "x"]):  # fmt: skip
        assert CliRunner().invoke(app, ["bench", "serve", *args]).exit_code == 2, args
