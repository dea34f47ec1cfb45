"""fork() with a live engine: the child gets a clear error or a new engine, the parent notices nothing.

`FORK_ROUNDS=100 pytest tests/process/test_fork.py` forks a hundred times in each way.
"""

import os

import pytest
from child import check

ROUNDS = int(os.environ.get("FORK_ROUNDS", "3"))
PARENT = """
    llm = LLM(**OPTIONS)
    expected = tokens(llm)
    stop = False
    def keep_busy():
        while not stop:
            llm.generate(['The', 'A list'], SamplingParams(max_tokens=50, ignore_eos=True))
    thread = threading.Thread(target=keep_busy)
    thread.start()
    wait_until(lambda: is_running(llm))
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            CHILD
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert tokens(llm) == expected
    stop = True
    thread.join()
    llm.close()
"""
REFUSED = """
    start = time.process_time()
    try:
        CALL
    except fastllm.EngineClosedError as error:
        assert 'fork' in str(error) and time.process_time() - start < 1, error  # one that waits gets the alarm
        END
    os._exit(1)
"""
CALLS = {
    "generate": "llm.generate('The', SHORT)",
    "stream": "list(llm.stream('The', SHORT))",
    "info": "llm.info()",
    "close": "llm.close(); llm.generate('The', SHORT)",
}


def indented(code, spaces):
    return code.replace("\n", "\n" + " " * spaces)


@pytest.mark.parametrize("call", CALLS)
def test_the_child_gets_an_error(call):
    child = indented(REFUSED, 8).replace("CALL", CALLS[call]).replace("END", "os._exit(7)")
    check(PARENT.replace("CHILD", child), str(ROUNDS))


def test_an_idle_child_exits_in_order():
    # With atexit, finalizers and destructors of the engine that it cannot use; quietly.
    assert check(PARENT.replace("CHILD", "sys.stderr = sys.stdout; sys.exit(7)"), str(ROUNDS)) == ""


def test_a_child_that_drops_the_engine_exits_in_order():
    assert (
        check(PARENT.replace("CHILD", "sys.stderr = sys.stdout; del llm; gc.collect(); sys.exit(7)"), str(ROUNDS)) == ""
    )


def test_the_child_can_make_an_engine_of_its_own():
    child = """
            with LLM(**{**OPTIONS, 'num_threads': 2}) as mine:
                assert tokens(mine) == expected
            os._exit(7)
"""
    check(PARENT.replace("CHILD", child), str(ROUNDS))


def test_async_engine_in_a_child():
    check("""
        import asyncio
        from fastllm import AsyncLLM
        async def first(llm):
            async for output in llm.generate('The', SHORT):
                if output.finished:
                    return output.outputs[0].token_ids
        llm = AsyncLLM(**OPTIONS)
        expected = asyncio.run(first(llm))
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            try:
                asyncio.run(first(llm))
            except fastllm.EngineClosedError as error:
                os._exit(7 if 'fork' in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert asyncio.run(first(llm)) == expected
    """)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""
import multiprocessing, sys
from fastllm import LLM, SamplingParams
SHORT = SamplingParams(temperature=0, max_tokens=4)
def work(text):
    with LLM(max_model_len=256, kv_cache_tokens=512, num_threads=1) as llm:
        return llm.generate(text, SHORT)[0].outputs[0].token_ids
if __name__ == '__main__':
    with LLM(max_model_len=256, kv_cache_tokens=512, num_threads=1) as llm:
        expected = [llm.generate(t, SHORT)[0].outputs[0].token_ids for t in ('The', 'A list')]
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            assert pool.map(work, ['The', 'A list']) == expected
        assert llm.generate('The', SHORT)[0].outputs[0].token_ids == expected[0]
""")
    check("import subprocess; subprocess.run([sys.executable, *sys.argv[1:]], check=True)", str(program), method)
