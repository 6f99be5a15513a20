#!/usr/bin/env python3
"""llama.cpp beside the engine: decode of one and of 32 sequences, and prefill, by llama-cpp-python's low-level calls.

    llama.py decode-b1|decode-b32|prefill --model FILE.gguf --models DIR [--threads N] [--serve]

decode-*   PROMPT tokens of context a sequence, then NEW tokens each, so that the mean context is 256; what is timed is
           llama_decode of one token of every sequence and a plain sample of each row at temperature 1 (llama.cpp's own dist
           sampler; no log-probabilities are computed, unlike on our side).
prefill    32 prompts of 512 tokens, logits of each prompt's last token.

Flash attention, one KV buffer for all sequences or one each, and the micro-batch are tried while getting ready; the fastest stays.
With --serve it speaks the protocol of `ooze bench`; without, it prints three runs.
"""
import argparse
import ctypes
import json
import os
import random
import sys
import time

try:
    import llama_cpp as ll
except ImportError:
    print(json.dumps({"error": "llama-cpp-python is not installed here: run tests/bench/setup.sh"}), flush=True)
    sys.exit(1)

PROMPT, NEW, PREFILL = 224, 64, 512
TRIAL = 96  # context of 32 sequences while settings are tried
silence = ll.llama_log_callback(lambda level, text, data: None)  # kept: ctypes does not hold a reference


class Model:
    def __init__(self, path, threads):
        ll.llama_log_set(silence, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.threads = threads
        self.context = None

    def open(self, n_seqs, n_tokens, ubatch, flash, unified):
        self.close()
        p = ll.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = n_tokens * n_seqs, max(ubatch, n_seqs), ubatch, n_seqs
        p.n_threads = p.n_threads_batch = self.threads
        p.flash_attn_type = 1 if flash else 0
        p.kv_unified = unified
        p.no_perf = True
        self.context = ll.llama_init_from_model(self.model, p)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make this context")
        self.memory = ll.llama_get_memory(self.context)
        self.n_batch = p.n_batch
        self.batch = ll.llama_batch_init(p.n_batch, 0, 1)
        chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_temp(1.0))
        ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_dist(1))
        self.sampler = chain

    def close(self):
        if self.context:
            ll.llama_sampler_free(self.sampler)
            ll.llama_batch_free(self.batch)
            ll.llama_free(self.context)
            self.context = None

    def put(self, token, pos, seq, logits):
        b, i = self.batch, self.batch.n_tokens
        b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, pos, 1, logits
        b.seq_id[i][0] = seq
        b.n_tokens = i + 1

    def run(self):
        rc = ll.llama_decode(self.context, self.batch)
        if rc:
            raise RuntimeError(f"llama_decode gave {rc}")
        self.batch.n_tokens = 0

    def prefill(self, prompts):
        """All prompts in batches of n_batch tokens; logits of the last token of each."""
        for seq, ids in enumerate(prompts):
            for pos, token in enumerate(ids):
                self.put(token, pos, seq, pos + 1 == len(ids))
                if self.batch.n_tokens == self.n_batch:
                    self.run()
        if self.batch.n_tokens:
            self.run()

    def decode(self, n_seqs, n_new, prompt):
        """Seconds of n_new steps of n_seqs sequences, of that in the sampler; the KV cache is as before afterwards."""
        tokens, sampling, t0 = [1] * n_seqs, 0.0, time.perf_counter()
        for step in range(n_new):
            for seq in range(n_seqs):
                self.put(tokens[seq], prompt + step, seq, True)
            self.run()
            t1 = time.perf_counter()
            for seq in range(n_seqs):
                tokens[seq] = ll.llama_sampler_sample(self.sampler, self.context, seq)
            sampling += time.perf_counter() - t1
        took = time.perf_counter() - t0
        for seq in range(n_seqs):
            ll.llama_memory_seq_rm(self.memory, seq, prompt, -1)
        return took, sampling


def prompts_of(model, n, length):
    r = random.Random(1)
    return [[r.randrange(model.vocab) for _ in range(length)] for _ in range(n)]


class Decode:
    def __init__(self, model, n_seqs):
        self.model, self.n_seqs = model, n_seqs
        self.prompts = prompts_of(model, n_seqs, PROMPT)
        best = None
        for flash in (True, False):
            for unified in ((False,) if n_seqs == 1 else (False, True)):
                speed = self.try_out(flash, unified)
                print(f"flash {flash} unified {unified}: {speed:.1f} tok/s", file=sys.stderr)
                best = max(best or (0,), (speed, flash, unified))
        self.setting = {"flash_attn": best[1], "kv_unified": best[2]}
        self.open(best[1], best[2], PROMPT)
        self.model.decode(self.n_seqs, 4, PROMPT)

    def open(self, flash, unified, prompt):
        self.model.open(self.n_seqs, prompt + NEW, 512, flash, unified)
        self.model.prefill([ids[:prompt] for ids in self.prompts])

    def try_out(self, flash, unified):
        prompt = PROMPT if self.n_seqs == 1 else TRIAL
        self.open(flash, unified, prompt)
        self.model.decode(self.n_seqs, 4, prompt)
        return max(8 * self.n_seqs / self.model.decode(self.n_seqs, 8, prompt)[0] for _ in range(2))

    def run(self):
        took, sampling = self.model.decode(self.n_seqs, NEW, PROMPT)
        return {"value": NEW * self.n_seqs / took, "step_ms": 1e3 * took / NEW, "sampling_ms": 1e3 * sampling / NEW}


class Prefill:
    def __init__(self, model, n_seqs):
        self.model, self.n_seqs = model, n_seqs
        self.prompts = prompts_of(model, n_seqs, PREFILL)
        trials = [self.try_out(ubatch, True) for ubatch in (128, 256, 512, 1024, 2048)]
        best = max(trials)
        best = max(best, self.try_out(best[1], False))
        self.setting = {"n_ubatch": best[1], "flash_attn": best[2]}
        self.model.open(n_seqs, PREFILL, best[1], best[2], False)

    def try_out(self, ubatch, flash):
        self.model.open(4, PREFILL, ubatch, flash, False)
        speed = self.time(self.prompts[:4])
        print(f"ubatch {ubatch} flash {flash}: {speed:.1f} tok/s", file=sys.stderr)
        return speed, ubatch, flash

    def time(self, prompts):
        ll.llama_memory_clear(self.model.memory, True)
        t0 = time.perf_counter()
        self.model.prefill(prompts)
        return len(prompts) * PREFILL / (time.perf_counter() - t0)

    def run(self):
        speed = self.time(self.prompts)
        return {"value": speed, "seconds": self.n_seqs * PREFILL / speed}


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("row", choices=["decode-b1", "decode-b32", "prefill"])
    args.add_argument("--model", required=True)
    args.add_argument("--models", required=True)
    args.add_argument("--threads", type=int, default=0)
    args.add_argument("--serve", action="store_true")
    args = args.parse_args()
    say = lambda o: print(json.dumps(o), flush=True)
    path = os.path.join(args.models, args.model)
    if not os.path.exists(path):
        say({"error": f"no {path}: run tests/bench/setup.sh"})
        sys.exit(1)
    threads = args.threads or len(os.sched_getaffinity(0))
    try:
        model = Model(path, threads)
        bench = Prefill(model, 32) if args.row == "prefill" else Decode(model, 1 if args.row == "decode-b1" else 32)
        setting = ", ".join(f"{k} {v}" for k, v in bench.setting.items())
        ready = {"ready": True, "name": f"llama.cpp {args.model.removesuffix('.gguf')} ({setting})", "threads": threads,
                 "bytes": ll.llama_model_size(model.model), "version": ll.__version__,
                 "system": ll.llama_print_system_info().decode(), "sampled": "plain draw at temperature 1, no logprobs"}
        if not args.serve:
            print(ready)
            for _ in range(3):
                print(bench.run())
            return
        say(ready)
        for line in sys.stdin:
            if line.strip() != "run":
                break
            say(bench.run())
    except (RuntimeError, SystemExit) as e:
        say({"error": str(e)})
        sys.exit(1)


if __name__ == "__main__":
    main()
