"""llama.cpp in its own process: what it computes, and every way in which it can fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError, InputError, LlamaError
from gguf_tools.formats.gguf.header import f32
from gguf_tools.runtime.log import buffer_sizes, decisive_lines
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.runtime.silence import Silence, silence_limit
from tests.surgery.surgery_files import with_metadata
from tests.tiny_gguf import CONTEXT, EOS, VOCAB, dense_tensors, write_dense

LENGTHS = (1, 5, 17, 70, 120)


def sequences(seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, length).tolist() for length in LENGTHS]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def work_for_long(runtime: Runtime) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        runtime.greedy([[1, 2, 3]] * 8, 200)


@pytest.fixture(params=["dense", "hybrid"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found: Runtime = request.getfixturevalue(f"{request.param}_runtime")
    return found


def test_info(dense_runtime: Runtime, chat_runtime: Runtime) -> None:
    info = dense_runtime.info
    tensors = dense_tensors()
    assert (info.arch, info.n_vocab, info.n_layer, info.context_train) == ("qwen3", VOCAB, 2, CONTEXT)
    assert info.n_params == sum(t.size for t in tensors.values())
    assert info.bytes == sum(t.nbytes for t in tensors.values())
    assert info.bits_per_weight == 32
    assert (info.bos, info.eos, info.add_bos) == (256, EOS, False)
    assert EOS in info.eog
    assert info.metadata["general.name"] == "tiny dense"
    assert info.chat_template is None
    assert chat_runtime.info.chat_template is not None
    assert dense_runtime.context_limit == CONTEXT


def test_tokenize_round_trip(dense_runtime: Runtime) -> None:
    text = "Hello, world! 你好 🙂\n\x00 end"
    ids = dense_runtime.tokenize(text)
    assert len(ids) == len(text.encode())
    assert dense_runtime.detokenize(ids) == text
    assert dense_runtime.tokenize("<|eos|>", parse_special=True) == [EOS]
    assert len(dense_runtime.tokenize("<|eos|>")) == len("<|eos|>")
    assert dense_runtime.detokenize([EOS], special=True) == "<|eos|>"
    assert dense_runtime.detokenize([EOS]) == ""
    assert dense_runtime.tokenize("") == []
    assert dense_runtime.detokenize([]) == ""
    with pytest.raises(InputError, match="surrogate"):
        dense_runtime.tokenize("a\ud800")


def test_vocab_only(dense: Path) -> None:
    with Runtime(dense, RuntimeOptions(threads=1, vocab_only=True)) as runtime:
        assert len(runtime.tokenize("abc")) == 3
        assert runtime.info.context_train == CONTEXT
        with pytest.raises(InputError, match="no weights were loaded"):
            runtime.logits([[1]])


def test_logits_do_not_depend_on_company_or_history(runtime: Runtime) -> None:
    together = runtime.logits(sequences())
    assert [a.shape for a in together] == [(n, VOCAB) for n in LENGTHS]
    runtime.greedy(sequences(2), 5)
    for sequence, logits in zip(sequences(), together, strict=True):
        np.testing.assert_array_equal(runtime.logits([sequence])[0], logits)


def test_logits_are_causal(runtime: Runtime) -> None:
    """A prefix's logits are those of the whole: positions, cache and recurrent state are all right."""
    sequence = sequences()[-1]
    whole, prefix = runtime.logits([sequence, sequence[:33]])
    np.testing.assert_allclose(prefix, whole[:33], atol=1e-3)


def test_greedy_is_the_chain_of_argmax(runtime: Runtime) -> None:
    prompts = sequences()
    results = runtime.greedy(prompts, 60)
    for prompt, result in zip(prompts, results, strict=True):
        (logits,) = runtime.logits([prompt + list(result.tokens[:-1])])
        generated = logits[len(prompt) - 1 :]
        assert generated.argmax(-1).tolist() == list(result.tokens)
        ordered = np.sort(generated, axis=-1)
        np.testing.assert_allclose(ordered[:, -1] - ordered[:, -2], result.margins, atol=1e-3)


def test_greedy_together_and_alone(runtime: Runtime) -> None:
    prompts = sequences(3)
    together = runtime.greedy(prompts, [3, 0, 10, 7, 1])
    assert [len(r.tokens) for r in together] == [3, 0, 10, 7, 1]
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = runtime.greedy([prompt], len(result.tokens))
        assert alone.tokens == result.tokens
        np.testing.assert_allclose(alone.margins, result.margins, atol=1e-3)


def test_greedy_stops(dense_runtime: Runtime) -> None:
    prompts = sequences(4)
    free = dense_runtime.greedy(prompts, 20)
    stop = frozenset({free[2].tokens[4]})
    for before, after in zip(free, dense_runtime.greedy(prompts, 20, stop), strict=True):
        end = next((i + 1 for i, token in enumerate(before.tokens) if token in stop), 20)
        assert after.tokens == before.tokens[:end]
    assert dense_runtime.greedy([], 5) == []


def test_greedy_takes_the_lowest_id_of_equals(tmp_path: Path) -> None:
    tensors = dense_tensors()
    tensors["token_embd.weight"][100:110] = tensors["token_embd.weight"][99]
    with Runtime(write_dense(tmp_path / "ties.gguf", tensors), RuntimeOptions(threads=1)) as runtime:
        (logits,) = runtime.logits([[99] * 20])
        assert np.ptp(logits[:, 99:110], axis=-1).max() == 0
        (result,) = runtime.greedy([[99] * 20], 10)
        assert not set(result.tokens) & set(range(100, 110))


def test_more_prompts_than_decode_together(dense_runtime: Runtime) -> None:
    prompts = [[i % 256, i // 256 + 1] for i in range(70)]
    results = dense_runtime.greedy(prompts, 3)
    assert [r.tokens for r in results[:2] + results[-2:]] == [
        dense_runtime.greedy([p], 3)[0].tokens for p in prompts[:2] + prompts[-2:]
    ]


def test_cache_types_differ_slightly(dense: Path, dense_runtime: Runtime) -> None:
    exact = dense_runtime.logits(sequences())[-1].astype(np.float64)
    options = [RuntimeOptions(threads=1, kv_type="f16"), RuntimeOptions(threads=1, flash_attn=True)]
    for option in options:
        with Runtime(dense, option) as runtime:
            other = runtime.logits(sequences())[-1]
        assert 0 < np.square(other - exact).sum() / np.square(exact).sum() < 1e-5
    with pytest.raises(InputError, match="flash attention"):
        RuntimeOptions(threads=1, kv_type="q8_0")


def test_long_sequences_cross_batches(tmp_path: Path) -> None:
    path = write_dense(tmp_path / "long.gguf")
    with Runtime(path, RuntimeOptions(threads=1, context_length=1200)) as runtime:
        sequence = np.random.default_rng(0).integers(0, 256, 1200).tolist()
        (logits,) = runtime.logits([sequence])
        (cut,) = runtime.logits([sequence[:700]])
        np.testing.assert_allclose(cut, logits[:700], atol=1e-3)
        (result,) = runtime.greedy([sequence[:700]], 2)
        assert result.tokens[0] == cut[-1].argmax()


def test_speed(dense_runtime: Runtime) -> None:
    seen: list[tuple[int, int]] = []
    speed = dense_runtime.speed(400, 100, repeat=1, progress=lambda done, total: seen.append((done, total)))
    assert speed.n_prompt + speed.n_generate <= CONTEXT
    assert speed.n_prompt == 4 * speed.n_generate
    assert speed.prompt_tok_s > 0
    assert speed.generate_tok_s > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.logits([[1, VOCAB]]), r"token id 260 \(logits\) is outside"),
        (lambda r: r.logits([[-1]]), r"token id -1 \(logits\) is outside"),
        (lambda r: r.logits([[1], []]), "sequence 1 is empty"),
        (lambda r: r.logits([[1] * (CONTEXT + 1)]), f"the context has {CONTEXT}"),
        (lambda r: r.greedy([[1] * 200], 57), "needs 257 tokens"),
        (lambda r: r.greedy([[1]], [1, 2]), "n_tokens has 2 numbers"),
    ],
)
def test_wrong_requests(dense_runtime: Runtime, call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=message):
        call(dense_runtime)
    assert dense_runtime.tokenize("a")  # and the process is none the worse


def test_wrong_paths(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name, message in [
        ("none.gguf", "does not exist"),
        (".", "is a folder"),
        ("text.gguf", "does not start with"),
        ("empty.gguf", "does not start with"),
    ]:
        with pytest.raises(InputError, match=message):
            Runtime(tmp_path / name)


def broken_file(tmp_path: Path, fault: str) -> Path:
    path = tmp_path / "broken.gguf"
    tensors = dense_tensors()
    if fault == "missing":
        del tensors["blk.0.attn_k.weight"]
    elif fault == "extra":
        tensors["blk.0.other.weight"] = tensors["blk.0.ffn_up.weight"]
    elif fault == "shape":
        tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"][:-1]
    elif fault == "nan":
        tensors["output_norm.weight"][3] = np.nan
    write_dense(path, tensors, rope=8 if fault == "assert" else 16)
    if fault.startswith("cut"):
        data = path.read_bytes()
        path.write_bytes(data[: {"cut head": 1000, "cut data": len(data) - 100}[fault]])
    return path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"failed \(load\).*blk\.0\.attn_k\.weight' not found$"),
        ("extra", r"failed \(load\).*wrong number of tensors"),
        ("shape", r"failed \(load\).*blk\.0\.ffn_up\.weight.*wrong shape"),
        ("assert", r"failed \(greedy\): its process was ended by SIGABRT: qwen3\.cpp:\d+: GGML_ASSERT\(.*\) failed$"),
        ("nan", r"logits after 2 tokens of prompt 0 are not finite$"),
    ],
)
def test_broken_files(tmp_path: Path, fault: str, message: str) -> None:
    path = broken_file(tmp_path, fault)
    runtime = Runtime(path, RuntimeOptions(threads=1))
    pid = None

    def use() -> None:
        nonlocal pid
        with runtime:
            pid = runtime.pid
            runtime.greedy([[1, 2]], 3)

    with pytest.raises(LlamaError, match=message) as caught:
        use()
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 700
    assert caught.value.exit_code == 3
    assert runtime.pid is None
    assert pid is None or not alive(pid)


@pytest.mark.parametrize(("fault", "message"), [("cut head", "truncated"), ("cut data", "truncated")])
def test_truncated_files_are_refused_before_a_process_starts(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Runtime(broken_file(tmp_path, fault))


def test_a_crash_says_what_in_the_file_is_wrong(tmp_path: Path, dense: Path) -> None:
    """llama.cpp's assertion names a line of its source."""
    path = with_metadata(dense, tmp_path / "m.gguf", {"qwen3.attention.layer_norm_rms_epsilon": f32(-1e-6)})
    said = r"was ended by SIGABRT: .*GGML_ASSERT.* failed; the epsilon of a norm is -1e-06 \("
    with Runtime(path, RuntimeOptions(threads=1)) as runtime, pytest.raises(LlamaError, match=said):
        runtime.greedy([[1, 2]], 3)


def test_killed_in_the_midst(dense: Path) -> None:
    with Runtime(dense, RuntimeOptions(threads=1)) as runtime:
        pid = runtime.pid
        assert pid is not None
        threading.Timer(0.3, os.kill, [pid, signal.SIGKILL]).start()
        with pytest.raises(LlamaError, match=r"was ended by SIGKILL"):
            work_for_long(runtime)
        with pytest.raises(LlamaError, match="not running"):
            runtime.tokenize("a")
    assert not alive(pid)


def test_silence_is_a_failure(dense: Path) -> None:
    with Runtime(dense, RuntimeOptions(threads=1, timeout=20)) as runtime:
        assert runtime.pid is not None
        object.__setattr__(runtime, "options", RuntimeOptions(threads=1, timeout=0.3))
        os.kill(runtime.pid, signal.SIGSTOP)
        with pytest.raises(LlamaError, match=r"made no progress for 0\.3 s"):
            runtime.tokenize("a")
        assert runtime.pid is None


def test_a_stopped_process_that_takes_no_request_is_a_failure(dense: Path) -> None:
    """The request is larger than the pipe holds, so that writing it waits for the process."""
    with Runtime(dense, RuntimeOptions(threads=1)) as runtime:
        assert runtime.pid is not None
        runtime.options = RuntimeOptions(threads=1, timeout=0.5)
        os.kill(runtime.pid, signal.SIGSTOP)
        with pytest.raises(
            LlamaError, match=r"made no progress for 0\.5 s and was stopped \(see --timeout\): its log ends: \S"
        ):
            runtime.tokenize("a" * (1 << 20))
        assert runtime.pid is None


def test_the_limit_on_silence_is_what_the_command_says(dense: Path) -> None:
    assert RuntimeOptions().timeout == 600
    with silence_limit(7):
        assert RuntimeOptions().timeout == 7
        with silence_limit(None):
            assert RuntimeOptions().timeout is None
        assert Runtime(dense).options.timeout == 7
    assert RuntimeOptions().timeout == 600


def test_signs_of_work_put_the_end_off() -> None:
    ended = threading.Event()
    with Silence(1.0, ended.set) as silence:
        for _ in range(20):
            time.sleep(0.1)
            silence.sign()
        assert not ended.is_set()
        assert ended.wait(30)
    assert silence.passed


def test_interrupt_ends_the_process_at_once(dense: Path) -> None:
    with Runtime(dense, RuntimeOptions(threads=1)) as runtime:
        pid = runtime.pid
        assert pid is not None
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            work_for_long(runtime)
        assert not alive(pid)
        with pytest.raises(LlamaError, match="not running"):
            runtime.tokenize("a")


SCRIPT = """
import sys, time, os
from pathlib import Path
from gguf_tools.runtime.process import Runtime
with Runtime(Path(sys.argv[1])) as runtime:
    if sys.argv[2] == "fork" and not os.fork():
        time.sleep(6)
        os._exit(0)
    print(runtime.pid, flush=True)
    while True:
        runtime.greedy([[1, 2, 3]] * 8, 200)
"""


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_no_orphan_survives_the_parent(dense: Path, how: str) -> None:
    """Not even where a process that the parent forked still holds the worker's stdin open."""
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(dense), how], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until_gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a stopped child with its parent")
def test_a_stopped_process_does_not_outlive_its_parent(dense: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(dense), "plain"], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until_gone(pid)


def test_worker_imports_no_torch() -> None:
    code = "import sys, gguf_tools.runtime.worker, gguf_tools.runtime.engine; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "False"


def test_output_is_not_disturbed(dense: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Runtime(dense, RuntimeOptions(threads=1)) as runtime:
        runtime.logits([[1]])
    out, err = capfd.readouterr()
    assert not re.sub(r"\s", "", out + err)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", ""),
        ("print_info: rope_finetuned = unknown\nload: bad token\n", ""),
        (
            "llama_model_loader: - kv  15: tokenizer.ggml.unknown_token_id u32 = 0\n"
            "llama_model_load: error loading model: missing tensor 'a'\n",
            "missing tensor 'a'",
        ),
        ("/a/b/ggml.c:12: GGML_ASSERT(x > 0) failed\nfailed later\n", "ggml.c:12: GGML_ASSERT(x > 0) failed"),
        (
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99\n"
            "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache\n",
            "failed to allocate buffer of size 99; failed to initialize the context: failed to allocate buffer for"
            " kv cache",
        ),
        (
            "llama_model_load: error loading model: unknown model architecture: 'x'\n"
            "llama_model_load_from_file_impl: failed to load model\n",
            "unknown model architecture: 'x'",
        ),
        ("error: " + "x" * 1000, "error: " + "x" * 392 + "…"),
    ],
)
def test_decisive_lines(log: str, line: str) -> None:
    assert decisive_lines(log) == line


def test_memory(dense_runtime: Runtime, hybrid_runtime: Runtime) -> None:
    small, large = dense_runtime.memory(64), dense_runtime.memory(CONTEXT)
    assert small.weights == large.weights
    assert small.weights == pytest.approx(dense_runtime.info.bytes, abs=0.01 * 2**20)
    assert (small.context, large.context) == (64, CONTEXT)
    assert large.cache >= small.cache > 0
    assert small.compute > 0
    assert small.total == small.weights + small.cache + small.compute
    hybrid = hybrid_runtime.memory(64)
    assert hybrid.weights == pytest.approx(hybrid_runtime.info.bytes, abs=0.01 * 2**20)
    with pytest.raises(InputError, match="context"):
        dense_runtime.memory(CONTEXT + 1)


def test_buffer_sizes() -> None:
    log = """load_tensors:   CPU_Mapped model buffer size =  1000.50 MiB
load_tensors:        CUDA0 model buffer size =   500.00 MiB
load_tensors:        CUDA0 model buffer size =   250.00 MiB
llama_kv_cache:        CPU KV buffer size =     2.00 MiB
llama_kv_cache:        CPU KV buffer size =     1.00 MiB
llama_memory_recurrent:        CPU RS buffer size =     0.06 MiB
sched_reserve:        CPU compute buffer size =     9.00 MiB
sched_reserve:        CPU compute buffer size =     1.50 MiB
llama_context:        CPU  output buffer size =     0.25 MiB
"""
    mib = {kind: size / 2**20 for kind, size in buffer_sizes(log).items()}
    assert mib == {"model": 1750.5, "KV": 3.0, "RS": pytest.approx(0.06), "compute": 1.5, "output": 0.25}
