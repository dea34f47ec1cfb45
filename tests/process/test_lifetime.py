"""Engines come and go: close and `del` during a call, many engines, many calls, many threads. Nothing stays behind.

`CYCLES=200 CALLS=3000 pytest tests/process/test_lifetime.py -s` is the full count, with figures.
"""

import os

from child import ENGINE, check

CYCLES = os.environ.get("CYCLES", "40")
CALLS = os.environ.get("CALLS", "300")
MEASURE = (
    ENGINE
    + """
import psutil
me = psutil.Process()
def usage():
    gc.collect()
    return me.memory_info().rss, me.num_fds(), me.num_threads()
def report(before, after, limit_mb):
    grown = (after[0] - before[0]) / 2**20
    print(f'resident memory {before[0] / 2**20:.0f} MB, {grown:+.1f} MB; files {before[1]} -> {after[1]}, '
          f'threads {before[2]} -> {after[2]}')
    assert grown < limit_mb, grown
    assert abs(after[1] - before[1]) <= 2 and after[2] == before[2]
"""
)


def test_create_and_close():
    print(check("""
        for i in range(10 + int(sys.argv[1])):
            if i == 10:
                before = usage()
            llm = LLM(**{**OPTIONS, 'num_threads': 2})
            tokens(llm)
            llm.close()
            llm.close()
        del llm
        report(before, usage(), 20)
    """, CYCLES, preamble=MEASURE))  # fmt: skip


def test_made_and_dropped_without_close():
    print(check("""
        for i in range(33):
            if i == 3:
                before = usage()
            llm = LLM(**OPTIONS)
            tokens(llm)
        del llm
        after = usage()
        report(before, (after[0], after[1], after[2] + 1), 50)  # `before` had the engine of round 2
    """, preamble=MEASURE))  # fmt: skip


def test_many_calls():
    print(check("""
        with LLM(**OPTIONS) as llm:
            expected = tokens(llm)
            for i in range(100 + int(sys.argv[1])):
                if i == 100:
                    before = usage()
                assert tokens(llm) == expected
                if i % 10 == 0:
                    "".join(llm.stream('A list', SHORT))
                    try:
                        llm.generate('The', SamplingParams(top_p=2))
                    except fastllm.InvalidRequestError:
                        pass
            report(before, usage(), 20)
    """, CALLS, preamble=MEASURE))  # fmt: skip


def test_two_engines_work_side_by_side():
    check("""
        a, b = LLM(**OPTIONS), LLM(**{**OPTIONS, 'num_threads': 2})
        expected = tokens(a)
        results = []
        def work(llm):
            for _ in range(10):
                results.append(tokens(llm))
        threads = [threading.Thread(target=work, args=(llm,)) for llm in (a, b) * 4]
        for t in threads: t.start()
        for t in threads: t.join()
        assert results == [expected] * 80
        a.close()
        assert tokens(b) == expected
    """)


def test_eight_threads_on_one_engine():
    check("""
        def ask(llm, i):
            params = SamplingParams(temperature=0.8, seed=i, max_tokens=12, logprobs=2, ignore_eos=True)
            outputs = llm.generate([f'Item {i}'] * (1 + i % 3), params)
            return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]
        with LLM(**OPTIONS) as llm:
            expected = [ask(llm, i) for i in range(8)]
            wrong = []
            def work(i):
                for _ in range(8):
                    if ask(llm, i) != expected[i]:
                        wrong.append(i)
            threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
            for t in threads: t.start()
            for t in threads: t.join()
            assert not wrong, wrong
            wait_until(lambda: llm.info()['engine']['num_pages_referenced'] == 0)
    """)


def test_close_from_another_thread_ends_the_call():
    check("""
        for _ in range(5):
            llm = LLM(**OPTIONS)
            errors = []
            def work(call):
                try:
                    call()
                except fastllm.EngineClosedError as error:
                    errors.append(error)
            calls = [lambda: llm.generate(['The'] * 30, LONG), lambda: list(llm.stream('The', LONG))]
            threads = [threading.Thread(target=work, args=(call,)) for call in calls]
            for t in threads: t.start()
            wait_until(lambda: is_running(llm))
            closers = [threading.Thread(target=llm.close) for _ in range(3)]
            for t in closers: t.start()
            for t in closers + threads:
                t.join(10)
                assert not t.is_alive()
            assert len(errors) == 2, errors
            try:
                tokens(llm)
            except fastllm.EngineClosedError:
                continue
            raise AssertionError('a closed engine generates')
    """)


def test_dropping_the_last_name_during_a_call():
    # The call itself still holds the engine: it finishes, then everything is freed.
    check("""
        import weakref
        LLM(**OPTIONS).close()
        num_threads = len(os.listdir('/proc/self/task'))  # with those of NumPy
        results = []
        for _ in range(5):
            llm = LLM(**OPTIONS)
            gone = weakref.ref(llm._runtime)
            t = threading.Thread(target=lambda llm: results.append(llm.generate('The', LONG)[0].finished), args=(llm,))
            t.start()
            wait_until(lambda: is_running(llm))
            del llm
            gc.collect()
            t.join(20)
            assert not t.is_alive()
            del t
            gc.collect()
            assert gone() is None
        assert results == [True] * 5
        wait_until(lambda: len(os.listdir('/proc/self/task')) == num_threads)
    """)


def test_a_stream_that_is_left_gives_its_pages_back():
    check("""
        with LLM(**OPTIONS) as llm:
            for _ in range(20):
                for _ in llm.stream('The', LONG):
                    break
            dropped = llm.stream('The', LONG)
            next(dropped)
            del dropped
            wait_until(lambda: llm.info()['engine']['num_pages_referenced'] == 0)
            assert not is_running(llm)
    """)
