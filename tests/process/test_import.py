"""What a library may do to its user's process: at import nothing, at run time only what it was asked for."""

from child import check


def test_import_touches_nothing():
    out = check(
        """
        import asyncio, dataclasses, json, logging, os, pathlib, signal, socket, sys, threading, time

        def handlers():
            return [signal.getsignal(s) for s in signal.valid_signals()]
        def files():
            links = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]
            return sorted(os.readlink(link) for link in links if os.path.lexists(link))

        before = handlers(), files()
        events = []
        sys.addaudithook(lambda event, args: events.append((event, args)))
        start = time.perf_counter()
        import fastllm
        took = time.perf_counter() - start
        kinds = ('socket.', 'subprocess.', 'os.exec', 'os.fork', 'os.posix_spawn', 'pickle.', 'ctypes.', 'tempfile.')
        suspicious = [e for e in events if e[0].startswith(kinds)]
        opened = [args for event, args in events if event == 'open' and '__pycache__' not in str(args[0])]
        written = [args for args in opened if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)]
        assert not suspicious and not written, (suspicious, written)
        assert (handlers(), files()) == before
        assert len(os.listdir('/proc/self/task')) == 1 == threading.active_count()
        heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'tokenizers', 'jinja2', 'rich', 'fastllm._core'}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        print(f'{1000 * took:.0f} ms')
        """,
        preamble="",
    )
    print(out)


def test_generating_imports_no_training_framework_and_opens_no_socket():
    check(
        """
        import sys
        sockets = []
        sys.addaudithook(lambda event, args: event in ('socket.connect', 'socket.bind') and sockets.append(args))
        import fastllm
        with fastllm.LLM(max_model_len=128, kv_cache_tokens=256) as llm:
            llm.generate('The', fastllm.SamplingParams(max_tokens=2, stop=['x'], logprobs=1))
            list(llm.stream('The', fastllm.SamplingParams(max_tokens=2)))
        frameworks = {'torch', 'transformers', 'tensorflow', 'jax', 'sentencepiece'}
        assert not frameworks & set(sys.modules), frameworks & set(sys.modules)
        assert not sockets, sockets
        """,
        preamble="",
    )


def test_an_idle_engine_uses_no_cpu():
    out = check("""
        def wake_ups():
            lines = [line for task in os.listdir('/proc/self/task') for line in open(f'/proc/self/task/{task}/status')]
            return sum(int(line.split()[1]) for line in lines if line.startswith('voluntary_ctxt'))

        with LLM(**{**OPTIONS, 'num_threads': 4}) as llm:
            tokens(llm)
            time.sleep(0.2)
            start, before = time.process_time(), wake_ups()
            time.sleep(1.0)
            print(time.process_time() - start)
            assert wake_ups() - before <= 10, 'threads wake up without work'
    """)
    # Bookkeeping of the interpreter only; a thread that spins would show as a whole second.
    assert float(out) < 0.05
