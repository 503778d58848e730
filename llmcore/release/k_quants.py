"""K-quants (Q4_K_M, …) through llama.cpp's own quantiser, which the optional package llama-cpp-python carries."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from llmcore.artifacts.disk import check_written
from llmcore.errors import LlmcoreError, UsageError

FORMATS = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k")


def check_available(formats: Sequence[str]) -> None:
    """UsageError if a K-quant is asked for and the extra that makes it is not installed."""
    wanted = [name for name in formats if name in FORMATS]
    if wanted and find_spec("llama_cpp") is None:
        raise UsageError(
            f"quantise.formats: {wanted[0]} needs llama.cpp; install the extra with `pip install 'llmcore[kquants]'` "
            "or leave it out"
        )


def quantise(f16: Path, target: Path, quantisation: str) -> None:
    """Write `target` in a K-quant format from an f16 GGUF file. LlmcoreError if llama.cpp refuses."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantisation.upper()}")
    params.nthread = 1  # the bytes do not depend on it, but neither should the load on a shared machine
    with silent():
        code = llama_cpp.llama_model_quantize(str(f16).encode(), str(target).encode(), ctypes.byref(params))
    if code:
        raise LlmcoreError(f"{target.name}: llama.cpp's quantiser ended with code {code}; take another format")
    check_written(target, lambda path: _tensors(path) == _tensors(f16))


@contextmanager
def silent() -> Iterator[None]:
    """llama.cpp writes to standard error unless it is told otherwise; what matters, its callers say."""
    import llama_cpp

    nothing = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(nothing, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def _tensors(path: Path) -> set[str]:
    """Names of the tensors of a GGUF file, each of which lies there whole."""
    import gguf

    return {tensor.name for tensor in gguf.GGUFReader(path).tensors}
