"""A program that ends while it generates ends with its own exit code, quickly and quietly.

`EXIT_ROUNDS=100 pytest tests/process/test_exit.py` runs each way a hundred times.
"""

import os
import signal
import time

import pytest
from child import run

ROUNDS = int(os.environ.get("EXIT_ROUNDS", "5"))
# Blocking calls and streams in threads that Python does not wait for.
BUSY = """
    llm = LLM(**OPTIONS)
    def call():
        while True:
            llm.generate(['The', 'A list'], LONG)
    def stream():
        while True:
            for _ in llm.stream('The', LONG):
                pass
    for target in (call, stream) * 3:
        threading.Thread(target=target, daemon=True).start()
    wait_until(lambda: is_running(llm))
    time.sleep(0.01 * int(sys.argv[1]))
"""
ASYNC = """
    import asyncio
    async def one(llm, i):
        async for _ in llm.generate(f'Item {i}', LONG):
            pass
    async def main():
        llm = fastllm.AsyncLLM(**OPTIONS)
        tasks = [asyncio.create_task(one(llm, i)) for i in range(8)]
        while llm.info()['engine']['num_running'] < 8:
            await asyncio.sleep(0.001)
        END
    asyncio.run(main())
"""
WAYS = {
    "end-of-program": (BUSY, 0, ""),
    "sys.exit": (BUSY + "    sys.exit(3)\n", 3, ""),
    "exception": (BUSY + "    raise ValueError('mine')\n", 1, "ValueError: mine"),
    "os._exit": (BUSY + "    os._exit(4)\n", 4, ""),
    "SIGTERM": (BUSY + "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(9)\n", -signal.SIGTERM, ""),
    "async-sys.exit": (ASYNC.replace("END", "sys.exit(3)"), 3, ""),
    "async-exception": (ASYNC.replace("END", "raise ValueError('mine')"), 1, "ValueError: mine"),
    "generates-in-atexit": (
        BUSY
        + """
    import atexit
    def bye():
        assert len(tokens(llm)) == 4
        os.write(2, b'said goodbye')
    atexit.register(bye)
    sys.exit(6)
""",
        6,
        "said goodbye",
    ),
    "atexit-after-the-engine": (
        # Registered before the engine was made, so it runs after the engine was closed.
        """
    import atexit
    def bye():
        try:
            tokens(llm)
        except fastllm.EngineClosedError:
            os.write(2, b'closed')
    atexit.register(bye)
"""
        + BUSY,
        0,
        "closed",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_exit_while_generating(way):
    code, exit_code, message = WAYS[way]
    for i in range(ROUNDS):
        start = time.monotonic()
        done = run(code, str(i % 5))
        took = time.monotonic() - start
        assert done.returncode == exit_code, f"round {i}: {done.returncode}\n{done.stderr}"
        assert message in done.stderr
        if not message:
            assert done.stderr == "", "an orderly end prints nothing"
        assert took < 10, "the goal is 2 s on an idle machine"


def test_a_thread_that_python_waits_for_finishes_its_request():
    done = run("""
        llm = LLM(**OPTIONS)
        threading.Thread(target=lambda: print(len(tokens(llm)))).start()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
