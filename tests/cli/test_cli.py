"""The command line: what goes in, what comes out, and which exit code says so."""

import inspect
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastllm.cli import app
from fastllm.cli.bench import _case
from fastllm.demo import DEMO_MODEL

COMMANDS = ("generate", "chat", "bench", "info")
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
SMALL = ["--max-tokens", "6", "--max-model-len", "128", "--memory-budget", "256MiB"]


def fastllm(*args, stdin=""):
    """Runs the command line in this process."""
    return CliRunner().invoke(app, [str(a) for a in args], input=stdin, env={"COLUMNS": "200"})


def spawn(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "fastllm", *args], capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.fixture
def config_only(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return tmp_path


def test_a_prompt_is_continued():
    done = fastllm("generate", "The os module", *SMALL)
    assert done.exit_code == 0
    assert done.stdout.startswith("The os module") and len(done.stdout) > len("The os module\n")
    assert fastllm("generate", "The os module", *SMALL, "--stream").stdout == done.stdout


def test_prompts_come_from_a_file_from_a_dash_and_from_a_pipe(tmp_path):
    (tmp_path / "prompts.txt").write_text("The os module\n\nA list is\n")
    from_file = fastllm("generate", "--file", tmp_path / "prompts.txt", *SMALL)
    assert from_file.exit_code == 0
    assert from_file.stdout.startswith("The os module") and "\nA list is" in from_file.stdout
    assert fastllm("generate", "-", *SMALL, stdin="The os module\nA list is\n").stdout == from_file.stdout
    assert fastllm("generate", *SMALL, stdin="The os module\nA list is\n").stdout == from_file.stdout


def test_json_is_one_object_a_prompt():
    done = fastllm("generate", "--json", "--n", 2, "--temperature", 1, "--seed", 3, *SMALL, stdin="The\n日本\n")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["prompt"] for r in records] == ["The", "日本"]
    for record in records:
        assert set(record) == {"prompt", "outputs", "prompt_tokens", "generated_tokens"}
        assert len(record["outputs"]) == 2
        for output in record["outputs"]:
            assert set(output) == {"text", "token_ids", "finish_reason", "stop_reason"}
            assert output["finish_reason"] in ("length", "stop")
        assert record["generated_tokens"] == sum(len(o["token_ids"]) for o in record["outputs"])
    assert fastllm(
        "generate", "--json", "--n", 2, "--temperature", 1, "--seed", 3, *SMALL, stdin="The\n日本\n"
    ).stdout == (done.stdout)


def test_stop_strings_end_the_text():
    free = fastllm("generate", "The os module", *SMALL).stdout
    stop = free[16:19]
    stopped = fastllm("generate", "The os module", "--stop", "zzz", "--stop", stop, *SMALL).stdout
    assert stopped == free[: free.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["generate", "x", "--file", "y"], "not both"),
        (["generate", "--file", "/does/not/exist"], "/does/not/exist"),
        (["generate", "x", "--temperature", "nan"], "temperature = nan is not in [0, 100]"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens = 0"),
        (["generate", "x", "--n", "1000"], "n = 1000"),
        (["generate", "x", "--stop", ""], "stop contains an item of 0 bytes"),
        (["generate", "x", "--dtype", "int3"], "dtype = 'int3' is not known; use one of auto, float32"),
        (["generate", "x", "--stream", "--json"], "--stream shows one text"),
        (["generate", "x", "--stream", "--n", "2"], "--stream shows one text"),
        (["generate", "x", "--max-model-len", "0"], "max_model_len"),
        (["generate", "x" * 3000, "--max-model-len", "64"], "max_model_len is 64"),
        (["generate", "x", "--memory-budget", "lots"], "memory size 'lots' is not understood"),
        (["generate", ""], "prompt"),
        (["generate", "-"], "no prompts"),
        (["generate", "x", "--temp", "1"], "--temp"),
        (["generate", "x", "--max-tokens", "many"], "--max-tokens"),
        (["nosuchcommand"], "nosuchcommand"),
        (["info", "--json", "--nosuch"], "--nosuch"),
    ],
)
def test_wrong_usage_is_2_and_one_line_that_says_what(args, text):
    done = fastllm(*args)
    assert done.exit_code == 2, done.output
    assert text in done.stderr
    assert "Traceback" not in done.output and done.stdout == ""


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["generate", "x", "--model", "/does/not/exist"], "/does/not/exist: no such directory"),
        (["chat", "--model", "/does/not/exist"], "/does/not/exist: no such directory"),
        (["info", "--no-measure", "--model", "/does/not/exist"], "/does/not/exist: no such directory"),
        (["bench", "--model", "/does/not/exist"], "/does/not/exist: no such directory"),
        (["generate", "x", "--memory-budget", "1MiB"], "memory_budget"),
        (["generate", "x", "--device", "cpu:abacus"], "abacus"),
    ],
)
def test_a_failure_is_1_and_one_message(args, text):
    done = fastllm(*args)
    assert done.exit_code == 1, done.output
    assert text in done.stderr and done.stderr.startswith("error: ")
    assert "Traceback" not in done.output and done.stdout == ""


def test_brackets_in_an_error_are_shown_as_they_are(tmp_path):
    """They are no markup: neither lost nor an error of their own."""
    folder = tmp_path / "[red]x[blue]"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    done = fastllm("generate", "x", "--model", folder)
    assert done.exit_code == 1 and "[red]x[blue]" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command):
    done = fastllm(command, "--help")
    assert done.exit_code == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    groups = [(group.name, group.typer_instance.registered_callback.callback) for group in app.registered_groups]
    callback = dict([(c.name, c.callback) for c in app.registered_commands] + groups)[command]
    for name, parameter in inspect.signature(callback).parameters.items():
        if name == "context":
            continue
        info = parameter.annotation
        assert info is not None
        if name == "prompt":
            continue
        flag = "--" + {"json_output": "json"}.get(name, name.replace("_", "-"))
        lines = (line for line in shown.splitlines() if line.startswith("│"))
        line = next((line for line in lines if re.search(rf"\s{flag}\s", line)), None)
        assert line is not None, f"{command} --help does not show {flag}"
        assert len(re.sub(r"[^a-z ]", "", line.split(">")[-1]).split()) >= 3, f"{flag} is not explained: {line}"


def test_help_lists_the_commands_and_the_version_is_shown():
    shown = fastllm("--help").stdout
    assert all(command in shown for command in COMMANDS)
    assert fastllm("--version").exit_code == 0
    assert fastllm("--version").stdout.strip()


def test_info_of_the_demo_model_and_of_a_config_alone(config_only):
    report = json.loads(fastllm("info", "--json", "--no-measure").stdout)
    assert report["machine"]["threads"] >= 1 and "scalar" in report["machine"]["isa_levels"]
    assert report["checkpoint"]["parameters"] == 4197120 and report["checkpoint"]["dtypes"] == ["BF16"]
    report = json.loads(fastllm("info", "--json", "--no-measure", "--model", config_only).stdout)
    assert report["checkpoint"]["architecture"] == "LlamaForCausalLM"
    assert (report["checkpoint"]["layers"], report["checkpoint"]["parameters"]) == (2, None)
    table = fastllm("info", "--no-measure", "--model", DEMO_MODEL)
    assert table.exit_code == 0 and "Qwen3ForCausalLM" in table.stdout


def test_bench_of_a_config_alone_runs_on_random_weights(config_only):
    args = ("--prompt-len", 32, "--decode-len", 4, "--batch", 2, "--repeat", 1)
    done = fastllm("bench", "--model", config_only, "--json", *args)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert "random weights" in report["model"]
    assert [case["case"].split()[0] for case in report["cases"]] == ["prefill", "decode", "decode"]
    for case in report["cases"]:
        assert case["tokens_per_s"] != 0 and case["limit"] > 0


def test_bench_of_rounded_weights_says_what_they_were_held_as(config_only):
    args = ("--prompt-len", 32, "--decode-len", 4, "--batch", 2, "--repeat", 1, "--quantization", "int4-g32",
            "--activation-mode", "a8", "--kv-cache-dtype", "int8", "--device", "reference")  # fmt: skip
    done = fastllm("bench", "--model", config_only, "--json", *args)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["weights"]["int4 g32, zeros"] > 0 and report["activation_mode"] == "a8"
    assert report["kv_cache_dtype"] == "int8" and report["limits"]["int8_ops"] > 0


LIMITS = {"read_bytes_per_s": 50e9, "float32_flops": 200e9, "bfloat16_flops": 400e9, "int8_ops": 800e9}


@pytest.mark.parametrize(
    "ops, read, achieved, limit, unit, share",
    [
        ({"int8": 80e9}, 1e9, 400, 800, "Gop/s", 0.5),
        ({"int8x2": 40e9}, 1e9, 200, 400, "Gop/s", 0.5),  # as much work for the units
        ({"int8": 40e9, "bfloat16": 20e9}, 1e9, 300, 600, "Gop/s", 0.5),  # 50 ms of each
        ({"float32": 20e9}, 1e9, 100, 200, "Gop/s", 0.5),
        ({"int8": 8e9}, 5e9, 25, 50, "GB/s", 0.5),  # 100 ms of reading, 10 ms of arithmetic
    ],
)
def test_the_limit_of_a_case_is_what_takes_longer_at_the_least(ops, read, achieved, limit, unit, share):
    case = _case("prefill 10", 10, 0.2, ops, read, LIMITS)
    assert case["tokens_per_s"] == 50 and case["step_ms"] == 200 and case["unit"] == unit
    found = [case[name] for name in ("achieved", "limit", "share")]
    assert found == pytest.approx([achieved, limit, share])


def test_bench_knows_no_limits_of_a_device_that_it_cannot_measure(config_only):
    args = ("--prompt-len", 8, "--decode-len", 2, "--batch", 1, "--repeat", 1, "--device", "cuda:emulated")
    done = fastllm("bench", "--model", config_only, *args)
    assert done.exit_code == 0, done.output
    assert "prefill 8" in done.stdout and "%" not in done.stdout and "/s " not in done.stdout.replace("tokens/s", "")


def test_chat_answers_each_line_and_ends_with_its_input():
    args = ("chat", "--temperature", 0, *SMALL)
    two = fastllm(*args, stdin="What is the os module for?\n\nthanks\n")
    assert two.exit_code == 0
    lines = two.stdout.splitlines()
    assert len(lines) >= 2 and ">" not in lines[0][:2]
    # After /reset the same question has the same answer: the conversation was forgotten.
    again = fastllm(*args, stdin="What is the os module for?\n/reset\nWhat is the os module for?\n/quit\nunread\n")
    half = len(again.stdout) // 2
    assert again.stdout[:half] == again.stdout[half:]


def test_chat_goes_on_without_its_oldest_turns_when_the_context_is_full():
    question = "What is the os module for, and what is the sys module for?\n"
    done = fastllm("chat", "--temperature", 0, "--max-tokens", 20, "--max-model-len", 128, stdin=question * 6)
    assert done.exit_code == 0
    assert "without the oldest turn" in done.stderr
    too_long = fastllm("chat", "--max-tokens", 20, "--max-model-len", 64, stdin="word " * 200)
    assert too_long.exit_code == 2 and "max_model_len is 64" in too_long.stderr


def test_the_module_runs_as_a_program_and_errors_have_no_traceback():
    done = spawn("generate", "The os module", "--max-tokens", "4")
    assert done.returncode == 0 and done.stdout.startswith("The os module") and done.stderr == ""
    done = spawn("generate", "x", "--model", "/does/not/exist")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: /does/not/exist") and done.stderr.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error_with_a_traceback():
    prompts = "The os module\n" * 400
    process = subprocess.Popen(
        [sys.executable, "-m", "fastllm", "generate", "--json", "--max-tokens", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(prompts)
    process.stdin.close()
    process.stdout.close()  # before anything is written
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_ctrl_c_ends_a_generation_with_130():
    process = subprocess.Popen(
        [sys.executable, "-m", "fastllm", "generate", "The", "--max-tokens", "1000", "--stream", "--temperature", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.read(8)  # it streams
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # A short text may have ended on its own before the signal came.
    assert process.returncode in (130, 0)
    assert b"Traceback" not in errors


def wait_until_it_reads(process):
    """A signal between the prompt and the read of a line would be seen when the line has come."""
    asleep = 0
    while asleep < 3:
        time.sleep(0.1)
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0


def test_in_a_terminal_chat_prompts_and_ctrl_c_ends_it_while_typing():
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastllm", "chat", "--max-tokens", "4", "--temperature", "0"],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
    )
    os.close(end)
    seen = b""
    try:
        deadline = time.monotonic() + 60
        done = 0
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    seen += os.read(terminal, 1024)
                except OSError:  # the program has closed its end
                    break
            if seen.count(b"> ") > done:  # each prompt has one answer; the last of them is not typed
                done += 1
                if done == 1:
                    os.write(terminal, b"What is the os module for?\n")
                else:
                    wait_until_it_reads(process)
                    process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, seen
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert b"Traceback" not in seen
