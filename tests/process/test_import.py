"""What a library may do to its user's process: at import nothing, at run time only what it was asked for."""

import os

from child import check


def test_import_touches_nothing():
    out = check("""
        import os, sys, signal, socket, threading, time
        import json, pathlib, dataclasses, asyncio, logging  # what any program has
        handlers = [signal.getsignal(s) for s in signal.valid_signals()]
        files = sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{fd}'))
        events = []
        sys.addaudithook(lambda event, args: events.append((event, args)))
        start = time.perf_counter()
        import fastllm
        took = time.perf_counter() - start
        suspicious = [e for e in events if e[0].startswith(('socket.', 'subprocess.', 'os.exec', 'os.fork', 'os.posix_spawn',
                                                            'pickle.', 'ctypes.', 'os.putenv', 'tempfile.'))]
        written = [e for e in events if e[0] == 'open' and isinstance(e[1][2], int) and e[1][2] & (os.O_WRONLY | os.O_RDWR)
                   and not str(e[1][0]).count('__pycache__')]
        assert not suspicious and not written, (suspicious, written)
        assert [signal.getsignal(s) for s in signal.valid_signals()] == handlers
        assert len(os.listdir('/proc/self/task')) == 1 == threading.active_count()
        assert sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{fd}')) == files
        for heavy in ('torch', 'transformers', 'numpy', 'huggingface_hub', 'tokenizers', 'jinja2', 'rich', 'fastllm._core'):
            assert heavy not in sys.modules, heavy
        print(f'{1000 * took:.0f} ms')
    """, preamble="")  # fmt: skip
    print(out)
    assert float(out.split()[0]) < 2000


def test_generating_imports_no_training_framework_and_opens_no_socket():
    check("""
        import sys
        sockets = []
        sys.addaudithook(lambda event, args: sockets.append(args) if event in ('socket.connect', 'socket.bind') else None)
        import fastllm
        with fastllm.LLM(max_model_len=128, kv_cache_tokens=256) as llm:
            llm.generate('The', fastllm.SamplingParams(max_tokens=2, stop=['x'], logprobs=1))
            llm.chat([{'role': 'user', 'content': 'Hello'}], fastllm.SamplingParams(max_tokens=2)) if llm._runtime.chat_template else None
        for module in ('torch', 'transformers', 'tensorflow', 'jax', 'sentencepiece'):
            assert module not in sys.modules, module
        assert not sockets, sockets
    """, preamble="")  # fmt: skip


def test_an_idle_engine_uses_no_cpu():
    out = check("""
        with LLM(**{**OPTIONS, 'num_threads': 4}) as llm:
            tokens(llm)
            time.sleep(0.2)
            start, switches = time.process_time(), sum(
                int(line.split()[1]) for task in os.listdir('/proc/self/task')
                for line in open(f'/proc/self/task/{task}/status') if line.startswith('voluntary_ctxt'))
            time.sleep(1.0)
            print(time.process_time() - start)
            after = sum(int(line.split()[1]) for task in os.listdir('/proc/self/task')
                        for line in open(f'/proc/self/task/{task}/status') if line.startswith('voluntary_ctxt'))
            assert after - switches <= 10, 'threads wake up without work'
    """)
    # Bookkeeping of the interpreter only; a thread that spins would show as a whole second.
    assert float(out) < 0.05
    assert os.getpid() > 0
