"""When the system refuses memory or files: an exception, and the process goes on."""

import pytest
from child import check


@pytest.mark.parametrize("threads", [1, 2])
def test_address_space_that_runs_out_while_loading(threads):
    # From no room at all to enough: each step is an exception or a working engine.
    out = check(f"""
        import resource
        fastllm.LLM(**OPTIONS).close()  # everything is imported
        outcomes = []
        for megabytes in list(range(0, 32, 2)) + list(range(32, 257, 32)):
            now = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
            resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))
            try:
                llm = None
                try:
                    llm = LLM(**{{**OPTIONS, 'num_threads': {threads}}})
                    outcomes.append(len(tokens(llm)))
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                    if llm is not None:
                        llm.close()
            except (MemoryError, fastllm.FastLLMError, OSError) as error:
                outcomes.append(type(error).__name__)
        print(outcomes)
        assert outcomes[-1] == 4 and outcomes[0] != 4
        with LLM(**OPTIONS) as llm:
            assert len(tokens(llm)) == 4
    """)
    print(out)
    assert "Error" in out


def test_address_space_that_runs_out_while_generating():
    out = check("""
        import resource
        with LLM(**OPTIONS) as llm:
            expected = tokens(llm)
            failed = 0
            big = SamplingParams(max_tokens=200, logprobs=20, ignore_eos=True)
            for megabytes in range(0, 12):
                now = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
                resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))
                try:
                    llm.generate(['The os module'] * 16, big)
                except (MemoryError, fastllm.FastLLMError, SystemError):  # the last: CPython 3.13 itself, now and then
                    failed += 1
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert tokens(llm) == expected
            wait_until(lambda: llm.info()['engine']['num_pages_referenced'] == 0)
            print('failed', failed)
    """)
    print(out)
    assert "failed" in out


def test_no_file_descriptors_left():
    check("""
        import resource
        with LLM(**OPTIONS) as first:
            expected = tokens(first)
            hold = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            try:
                while True:
                    hold.append(os.open('/dev/null', os.O_RDONLY))
            except OSError:
                pass
            assert tokens(first) == expected, 'a running engine needs no file'
            try:
                LLM(**OPTIONS)
            except (fastllm.FastLLMError, OSError) as error:
                assert 'too many open files' in str(error).lower() or 'EMFILE' in str(error), error
            else:
                raise AssertionError('loaded without files')
            for fd in hold:
                os.close(fd)
            with LLM(**OPTIONS) as second:
                assert tokens(second) == expected
    """)


def test_the_model_may_be_removed_once_it_is_loaded(tmp_path):
    check(
        """
        import shutil
        from fastllm.demo import DEMO_MODEL
        folder = sys.argv[1]
        shutil.copytree(DEMO_MODEL, folder)
        with LLM(folder, **OPTIONS) as llm:
            expected = tokens(llm)
            with open(os.path.join(folder, 'model.safetensors'), 'r+b') as file:
                file.truncate(100)
            shutil.rmtree(folder)
            assert tokens(llm) == expected
            assert 'model.safetensors' not in open('/proc/self/maps').read()
        """,
        str(tmp_path / "model"),
    )
