"""What the comparisons with transformers share: prompts, the engine as a child process, models in f32, our FP8 rule."""
import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()

PROMPTS = [
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that reverses a string.",
    "List five fruits that are red.",
    "What is 17 + 25?",
    "Translate 'good morning' into Spanish.",
    "Who wrote the play Hamlet?",
    "Give me a recipe for pancakes.",
    "What is the difference between a virus and a bacterium?",
    "Write a short poem about the sea.",
    "How do I boil an egg?",
    "Spell the word banana backwards.",
    "Name the planets of the solar system in order.",
    "What does HTTP stand for?",
    "Summarise the story of Little Red Riding Hood.",
    "Why do cats purr?",
    "Sort these numbers: 9, 3, 7, 1.",
    "Tell me a fact about the Moon.",
    "Write an e-mail that asks for a day off.",
    "What is a prime number? Give three examples.",
]

FP8_MAX, BLOCK = 448.0, 128


def prompt_ids(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True,
                                        return_dict=True)["input_ids"]
    return [int(i) for i in ids]


def model_open(folder, state=None):
    """The folder in f32; with `state` its tensors are replaced."""
    if state is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, surplus = model.load_state_dict(state, strict=False)
    if surplus or any(m != "lm_head.weight" for m in missing):
        sys.exit(f"{folder}: missing {missing}, surplus {surplus}")
    model.tie_weights()
    return model


def state_load(folder):
    return {k: v.float() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}


def is_linear(name):
    return name.endswith("_proj.weight")


def fp8_round_trip(w):
    """A matrix through E4M3 with one scale per 128x128 block, max(|w|, 1e-12)/448, as f32 (docs/algorithms.md)."""
    n, k = w.shape
    pad = torch.zeros(-(-n // BLOCK) * BLOCK, -(-k // BLOCK) * BLOCK)
    pad[:n, :k] = w
    blocks = pad.reshape(pad.shape[0] // BLOCK, BLOCK, pad.shape[1] // BLOCK, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-12) / FP8_MAX
    q = (blocks / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()
    return (q * scale).reshape(pad.shape)[:n, :k].contiguous()


def fp8_state(folder):
    """The folder as the engine holds it in FP8: linear layers through E4M3, everything else bf16."""
    return {k: fp8_round_trip(v) if is_linear(k) else v.bfloat16().float() for k, v in state_load(folder).items()}


def engine_lines(build, folder, mode, requests, *options):
    """ooze-rollout's answers to a list of requests."""
    command = [os.path.join(build, "bin", "ooze-rollout"), "--model", folder, "--" + mode, *map(str, options)]
    done = subprocess.run(command, input="".join(json.dumps(r) + "\n" for r in requests), stdout=subprocess.PIPE,
                          text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) != len(requests) or any("error" in a for a in answers):
        sys.exit(f"{command[0]}: {len(answers)} answers to {len(requests)} requests, "
                 f"errors {[a['error'] for a in answers if 'error' in a][:3]}")
    return answers


@torch.no_grad()
def logits_of(model, ids):
    """[len(ids), vocabulary] in f32."""
    return model(torch.tensor([ids])).logits[0].float()


def verdict(ok, text):
    print(f"{'ok' if ok else 'FAILED'}: {text}", flush=True)
    sys.exit(0 if ok else 1)
