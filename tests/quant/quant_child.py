"""Runs llama.cpp's own quantizer for the tests, in a process of its own: its assertions end the process.

Reads one JSON request a line from stdin, answers with one JSON line on stdout:
{"op": "quantize", …} runs `llama_model_quantize`; {"op": "types", …} asks `llama_quant_compute_types`, which decides
types from names and shapes alone (C++ functions of llama-ext.h, called by their mangled names).
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np

log: list[str] = []


class ModelDescription(ctypes.Structure):
    """`struct llama_quant_model_desc` of llama-ext.h."""

    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert")),
        *((name, ctypes.c_uint32) for name in ("n_embd_head_k", "n_embd_head_v")),
    )


class GgmlInit(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def params_of(request: dict[str, Any], keep: list[Any]) -> Any:
    """`llama_model_quantize_params` from a request; what they point at goes into `keep`."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = request.get("threads", 1)
    params.ftype = request["ftype"]
    for field in ("pure", "keep_split", "allow_requantize", "output_tensor_type", "token_embedding_type"):
        if request.get(field) is not None:
            setattr(params, field, request[field])
    overrides = request.get("overrides") or []
    if overrides:
        array = (llama_cpp.llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for at, (pattern, kind) in enumerate(overrides):
            array[at].pattern, array[at].type = pattern.encode(), kind
        keep.append(array)
        params.tt_overrides = ctypes.cast(array, type(params.tt_overrides))
    if request.get("imatrix"):
        values = dict(np.load(request["imatrix"]))
        entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
        for at, (name, data) in enumerate(values.items()):
            flat = np.ascontiguousarray(data, np.float32).reshape(-1)
            keep.append(flat)
            entries[at].name = name.encode()
            entries[at].data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries[at].size = flat.size
        keep.append(entries)
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    return params


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """Answers {"rc": 0 if the file was written, "log": the last lines}."""
    import llama_cpp

    keep: list[Any] = []
    params = params_of(request, keep)
    rc = llama_cpp.llama_model_quantize(request["input"].encode(), request["output"].encode(), ctypes.byref(params))
    return {"rc": rc, "log": "".join(log[-8:])}


def types(request: dict[str, Any]) -> dict[str, Any]:
    """Answers {"types": ggml ids}, tensors that are not quantized as F32."""
    import llama_cpp

    llama = llama_cpp.llama_cpp._lib
    from quant import ggml

    base = ggml.library()
    keep: list[Any] = []
    params = params_of(request, keep)
    model_of = llama._Z31llama_quant_model_from_metadataPK22llama_quant_model_desc
    state_of = llama._Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params
    free_state = llama._Z16llama_quant_freeP19quantize_state_impl
    compute = llama._Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem
    model_of.restype = state_of.restype = ctypes.c_void_p
    compute.restype = free_state.restype = None
    base.ggml_init.argtypes, base.ggml_init.restype = (GgmlInit,), ctypes.c_void_p
    base.ggml_new_tensor.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    base.ggml_new_tensor.restype = ctypes.c_void_p
    base.ggml_set_name.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    base.ggml_free.argtypes = (ctypes.c_void_p,)

    about = ModelDescription(**{**request["model"], "architecture": request["model"]["architecture"].encode()})
    tensors = request["tensors"]
    context = base.ggml_init(GgmlInit(512 * (len(tensors) + 8), None, True))
    pointers = (ctypes.c_void_p * len(tensors))()
    for at, (name, shape) in enumerate(tensors):
        sizes = (ctypes.c_int64 * len(shape))(*reversed(shape))
        pointers[at] = base.ggml_new_tensor(context, 0, len(shape), sizes)
        base.ggml_set_name(pointers[at], name.encode())
    model = model_of(ctypes.byref(about))
    state = state_of(ctypes.c_void_p(model), ctypes.byref(params))
    result = (ctypes.c_int * len(tensors))()
    compute(ctypes.c_void_p(state), request["ftype"], pointers, result, ctypes.c_size_t(len(tensors)))
    free_state(ctypes.c_void_p(state))
    llama_cpp.llama_model_free(ctypes.cast(model, llama_cpp.llama_model_p_ctypes))
    base.ggml_free(context)
    return {"types": list(result)}


def main() -> None:
    """Serves requests until stdin closes."""
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep_log(level: int, text: bytes, data: object) -> None:
        log.append(text.decode(errors="replace"))
        del log[:-8]

    llama_cpp.llama_log_set(keep_log, None)
    for line in sys.stdin:
        request = json.loads(line)
        answer = quantize(request) if request["op"] == "quantize" else types(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
