#!/usr/bin/env python3
"""Golden files for tests/oracle/test_model.c: tiny models of every architecture, built and run by transformers.

    python3 tests/golden/make_model.py            (torch, transformers, safetensors; versions go into the files)

For each model tests/golden/model_NAME/ gets
  config.json, model.safetensors   as save_pretrained writes them, f32
  golden.safetensors               ids I32 [n], lengths I32 [sequences], targets I32 [n] (-1 = not trained),
                                   logits F32 [n, V], loss F32 [1], grad.TENSOR F32 for every parameter: gradient of the
                                   mean cross entropy over the trained tokens; losses F32 [10]: that loss before each of
                                   ten AdamW steps with clipping by global norm
"""
import json
import os
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
BASE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=96, max_position_embeddings=128, rms_norm_eps=1e-5, attention_dropout=0.0, bos_token_id=1,
            eos_token_id=2, pad_token_id=None)
# theta so small that the four frequencies of a head of 8 fall on both sides of the scaled band and into it
LLAMA3 = dict(rope_type="llama3", rope_theta=60.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**BASE, tie_word_embeddings=False)),
    "llama3": (LlamaForCausalLM, LlamaConfig(**BASE, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**BASE, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**BASE, tie_word_embeddings=False, head_dim=16)),
}
LENGTHS = [45, 17, 33, 2]
LR, BETAS, EPS, DECAY, CLIP = 3e-3, (0.9, 0.95), 1e-8, 0.1, 0.5


def loss_of(model, sequences, targets, n_trained):
    loss, logits = 0.0, []
    for ids, target in zip(sequences, targets):
        out = model(input_ids=ids[None]).logits[0].float()
        logits.append(out)
        loss = loss + torch.nn.functional.cross_entropy(out, target, ignore_index=-1, reduction="sum")
    return loss / n_trained, torch.cat(logits)


def metadata_sort(path):
    """safetensors writes the metadata in a random order; the same run shall give the same bytes."""
    with open(path, "r+b") as f:
        n = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(n))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode().ljust(n)
        assert len(text) == n
        f.seek(8)
        f.write(text)


def make(name, cls, config):
    torch.manual_seed(1234)
    config._attn_implementation = "eager"
    model = cls(config).float().eval()
    with torch.no_grad():  # larger than an initial model: attention that attends, norms and biases that are not trivial
        for key, p in model.named_parameters():
            if "norm" in key:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            elif key.endswith("bias"):
                p.copy_(0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.5 if "embed" in key else p.shape[-1] ** -0.5 * 1.5))
    model.tie_weights()
    sequences = [torch.randint(0, config.vocab_size, (n,)) for n in LENGTHS]
    targets = []
    for ids in sequences:
        t = torch.full_like(ids, -1)
        t[:-1] = ids[1:]
        t[: len(ids) // 4] = -1  # a prompt
        targets.append(t)
    n_trained = int(sum((t >= 0).sum() for t in targets))
    folder = os.path.join(HERE, "model_" + name)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for extra in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))

    loss, logits = loss_of(model, sequences, targets, n_trained)
    loss.backward()
    golden = {
        "ids": torch.cat(sequences).int(), "lengths": torch.tensor(LENGTHS).int(), "targets": torch.cat(targets).int(),
        "logits": logits.detach(), "loss": loss.detach().reshape(1),
    }
    for key, p in model.named_parameters():
        golden["grad." + key] = p.grad.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss, _ = loss_of(model, sequences, targets, n_trained)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    golden["losses"] = torch.tensor(losses)
    metadata = {"torch": torch.__version__, "transformers": transformers.__version__, "lr": str(LR),
                "beta1": str(BETAS[0]), "beta2": str(BETAS[1]), "eps": str(EPS), "weight_decay": str(DECAY),
                "clip_grad_norm": str(CLIP)}
    save_file({k: v.contiguous() for k, v in golden.items()}, os.path.join(folder, "golden.safetensors"), metadata)
    metadata_sort(os.path.join(folder, "golden.safetensors"))
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    print(name, "loss", losses[0], "->", losses[-1])


if __name__ == "__main__":
    for model_name, (cls, config) in MODELS.items():
        make(model_name, cls, config)
