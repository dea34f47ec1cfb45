"""Ctrl-C: KeyboardInterrupt in the call, the engine goes on."""

import signal
import subprocess
import sys
import textwrap

import pytest
from child import ENGINE


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", ENGINE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("llm.generate(['The'] * 40, LONG)", id="generate"),
        pytest.param("list(llm.stream('The', LONG))", id="stream"),
        pytest.param("asyncio.run(consume())", id="async"),
    ],
)
def test_ctrl_c_ends_the_call_and_not_the_engine(call):
    process = start(f"""
        import asyncio
        llm = LLM(**OPTIONS)
        async_llm = fastllm.AsyncLLM(**OPTIONS)
        async def consume():
            async for _ in async_llm.generate('The', LONG):
                pass
        expected = tokens(llm)
        for _ in range(2):
            try:
                print('busy', flush=True)
                while True:
                    {call}
            except KeyboardInterrupt:
                end = time.monotonic()
                print(end, flush=True)
            wait_until(lambda: not is_running(llm) and not is_running(async_llm))
            assert llm.info()['engine']['num_pages_referenced'] == 0
            assert tokens(llm) == expected
    """)
    try:
        for _ in range(2):
            assert process.stdout.readline() == "busy\n"
            # Whatever part of the call it is in.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.15)
            process.send_signal(signal.SIGINT)
            assert float(process.stdout.readline()) > 0
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, ""), out + err


def test_the_library_installs_no_handler():
    process = start("""
        before = [signal.getsignal(s) for s in signal.valid_signals()]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        with LLM(**OPTIONS) as llm:
            tokens(llm)
            assert [signal.getsignal(s) for s in signal.valid_signals()] == before
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
            # And none behind Python's back: signals that this process catches, from the kernel.
            caught = int(next(l for l in open('/proc/self/status') if l.startswith('SigCgt')).split()[1], 16)
            assert caught & 0xffffffff == 1 << (signal.SIGINT - 1), hex(caught)
    """)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, out + err
