#!/usr/bin/env python3
"""Peer of bench_grpo: whole synchronous GRPO iterations of TRL's GRPOTrainer on the CPU.

The same work as ours: --prompts prompts of 32 to 64 tokens (or --prompt all alike), --answers answers each of exactly --new tokens (end of sequence
cannot be drawn), reward = how even the ids of an answer are, group-relative advantages, no reference model (beta 0), one AdamW
update over everything. SmolLM2-135M's shapes, or its weights with --model DIR. One iteration is what lies between
on_step_begin and on_step_end of the trainer: generation by transformers with its cache, rewards, forward, backward, update.

  trl_grpo.py --serve [--prompts 64] [--answers 8] [--new 128] [--threads N] [--micro 4] [--dtype bf16|autocast|f32]
              [--gen static|dynamic|continuous] [--checkpointing] [--attn sdpa|eager] [--model DIR] [--prompt TOKENS]
  trl_grpo.py ...                one warm-up and one measured iteration, figures for people

--dtype bf16: parameters and moments in bf16, which is TRL's fastest here and less work than ours (f32 master weights); autocast:
f32 parameters, products in bf16. The protocol on stdin and stdout is that of `ooze bench`: a line {"ready": true, ...}, then
one measured iteration for each line "run"; value is seconds.
"""
import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time

HIDDEN, LAYERS, HEADS, KV, D, FFN, VOCAB = 576, 30, 9, 3, 64, 1536, 49152
SEED = 1


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--serve", action="store_true")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--answers", type=int, default=8)
    p.add_argument("--new", type=int, default=128)
    p.add_argument("--prompt", type=int, default=0, help="tokens of every prompt; 0: 32 to 64")
    p.add_argument("--threads", type=int, default=0, help="0: all cores")
    p.add_argument("--micro", type=int, default=4,
                   help="sequences in one forward and backward pass; 4 was the fastest of 4, 8 and 32 where this was written")
    p.add_argument("--dtype", choices=["bf16", "autocast", "f32"], default="bf16")
    p.add_argument("--gen", choices=["dynamic", "static", "continuous"], default="dynamic")
    p.add_argument("--attn", choices=["sdpa", "eager"], default="sdpa")
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--models", help="given to every program of `ooze bench`; random weights do not need it")
    p.add_argument("--model", help="Hugging Face folder; else random weights of the shapes")
    a = p.parse_args()
    a.threads = a.threads or len(os.sched_getaffinity(0))
    if a.prompts * a.answers % a.micro:
        p.error("--micro must divide prompts x answers")
    return a


def prompts_of(n, length):
    """n lists of `length` ids, or of 32 to 64; bench_grpo draws its own of the same lengths (32 + 32 i / (n - 1))."""
    r = random.Random(SEED)
    return [[r.randrange(VOCAB) for _ in range(length or 32 + 32 * i // max(n - 1, 1))] for i in range(n)]


def word_tokenizer():
    """One word an id: text and ids are the same thing. Its end of sequence is an id that the model does not have."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(VOCAB)}
    words["<eos>"] = VOCAB
    t = Tokenizer(models.WordLevel(words, unk_token="t0"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<eos>", pad_token="t0", padding_side="left")


def make_model(a, torch):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    torch.manual_seed(SEED)
    if a.model:
        m = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, attn_implementation=a.attn)
    else:
        m = LlamaForCausalLM._from_config(
            LlamaConfig(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV,
                        head_dim=D, intermediate_size=FFN, vocab_size=VOCAB, max_position_embeddings=8192,
                        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, rms_norm_eps=1e-5,
                        tie_word_embeddings=True),
            dtype=dtype, attn_implementation=a.attn)
    m.generation_config.eos_token_id = VOCAB
    m.generation_config.bos_token_id = None
    m.generation_config.pad_token_id = 0
    return m


def reward(prompts, completions, completion_ids, **_):
    return [sum(1 for i in ids if i % 2 == 0) / max(len(ids), 1) for ids in completion_ids]


class Split:
    """Seconds spent in generation and in the reward since the last take()."""

    def __init__(self, trainer):
        self.generate = self.score = 0.0
        self._wrap(trainer, "_generate_single_turn", "generate")
        self._wrap(trainer, "_calculate_rewards", "score")

    def _wrap(self, trainer, name, field):
        inner = getattr(trainer, name)

        def timed(*args, **kwargs):
            t0 = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                setattr(self, field, getattr(self, field) + time.perf_counter() - t0)

        setattr(trainer, name, timed)

    def take(self):
        r = (self.generate, self.score)
        self.generate = self.score = 0.0
        return r


def make_trainer(a, out_dir):
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(a.threads)
    n = a.prompts * a.answers
    rows = [{"prompt": " ".join(f"t{i}" for i in ids)} for ids in prompts_of(a.prompts, a.prompt)]
    gen = {"eos_token_id": VOCAB, "max_new_tokens": a.new, "min_new_tokens": None}
    config = GRPOConfig(
        output_dir=out_dir, use_cpu=True, bf16=a.dtype == "autocast", fp16=False, seed=SEED,
        per_device_train_batch_size=a.micro, gradient_accumulation_steps=n // a.micro,
        num_generations=a.answers, max_completion_length=a.new, generation_kwargs=gen,
        cache_implementation="static" if a.gen == "static" else None,
        use_transformers_continuous_batching=a.gen == "continuous",
        temperature=1.0, beta=0.0, num_iterations=1, learning_rate=1e-5, lr_scheduler_type="constant",
        gradient_checkpointing=a.checkpointing, max_steps=1 << 20, save_strategy="no", logging_strategy="no",
        report_to=[], disable_tqdm=True, optim="adamw_torch_fused", max_grad_norm=1.0, dataloader_num_workers=0,
        shuffle_dataset=False)
    return GRPOTrainer(model=make_model(a, torch), reward_funcs=reward, args=config,
                       train_dataset=Dataset.from_list(rows), processing_class=word_tokenizer())


def resident_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1048576


def iterations(a, trainer, before, after):
    """Runs the trainer; before() is asked at the start of each iteration (False ends), after(seconds, generate, score)."""
    from transformers import TrainerCallback

    split = Split(trainer)
    start = [0.0]

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kw):
            if not before():
                sys.stdout.flush()
                shutil.rmtree(args.output_dir, ignore_errors=True)
                os._exit(0)  # there is no way out of a step that has begun
            split.take()
            start[0] = time.perf_counter()

        def on_step_end(self, args, state, control, **kw):
            after(time.perf_counter() - start[0], *split.take())

    trainer.add_callback(Clock())
    trainer.train()


def main():
    a = arguments()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print is no part of the protocol
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(a, folder)
        tokens = a.prompts * a.answers * a.new
        done = [0]

        def ready():
            if done[0] == 0:
                import torch
                print(json.dumps({"ready": True, "name": f"TRL GRPOTrainer, {a.dtype}, {a.gen} cache, "
                                  f"micro-batch {a.micro}", "threads": torch.get_num_threads(), "tokens": tokens}),
                      file=out)
            return sys.stdin.readline().strip() == "run"

        def twice():
            return done[0] < 2

        def report(seconds, generate, score):
            done[0] += 1
            print(json.dumps({"value": seconds, "generate_s": generate, "score_s": score,
                              "train_s": seconds - generate - score, "generate_tok_s": tokens / max(generate, 1e-9),
                              "peak_gib": round(resident_gib(), 2)}), file=out)

        iterations(a, trainer, ready if a.serve else twice, report)


if __name__ == "__main__":
    main()
