"""llama.cpp's own continuous batch, one burst: prefill, then one llama_decode a step for all sequences.

usage: llamacpp_batched.py MODEL.gguf --sequences N [--prompt 128] [--output 128] [--threads 2] [--repeat 1]
Prints a JSON object a repetition. Needs llama-cpp-python (see bench/README.md).
Greedy: the next token of a sequence is the largest logit, so that sampling is paid as Quire pays it.
"""
import argparse
import ctypes
import json
import random
import time

import llama_cpp as L
import numpy as np


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(level, text, data):
    pass


args = argparse.ArgumentParser()
args.add_argument("model")
args.add_argument("--sequences", type=int, required=True)
args.add_argument("--prompt", type=int, default=128)
args.add_argument("--output", type=int, default=128)
args.add_argument("--threads", type=int, default=2)
args.add_argument("--repeat", type=int, default=1)
a = args.parse_args()

L.llama_backend_init()
L.llama_log_set(quiet, None)
model = L.llama_model_load_from_file(a.model.encode(), L.llama_model_default_params())
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))

p = L.llama_context_default_params()
p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = a.sequences * (a.prompt + a.output + 64), 2048, 512, a.sequences
p.n_threads = p.n_threads_batch = a.threads
p.kv_unified = False
ctx = L.llama_init_from_model(model, p)
batch = L.llama_batch_init(2048, 0, a.sequences)


def decode(rows):
    """rows: (token, position, sequence, wants logits). Returns the greedy token of each row that wants logits."""
    batch.n_tokens = len(rows)
    for i, (token, pos, seq, logits) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos, 1, logits
        batch.seq_id[i][0] = seq
    if L.llama_decode(ctx, batch) != 0:
        raise SystemExit("llama_decode failed")
    L.llama_synchronize(ctx)
    out = []
    for i, row in enumerate(rows):
        if row[3]:
            logits = np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, i), shape=(vocab,))
            out.append(int(logits.argmax()))
    return out


rng = random.Random(1)
for _ in range(a.repeat):
    L.llama_memory_clear(L.llama_get_memory(ctx), True)
    start = time.perf_counter()
    last = []
    first_at = []
    for s in range(a.sequences):
        rows = [(100 + rng.randrange(vocab - 100), i, s, int(i == a.prompt - 1)) for i in range(a.prompt)]
        for k in range(0, len(rows), 512):
            got = decode(rows[k : k + 512])
        last += got
        first_at.append(time.perf_counter() - start)
    filled = time.perf_counter()
    for k in range(a.output - 1):
        last = decode([(last[s], a.prompt + k, s, 1) for s in range(a.sequences)])
    end = time.perf_counter()
    print(json.dumps({
        "output_rate": a.sequences * a.output / (end - start),
        "prefill_rate": a.sequences * a.prompt / (filled - start),
        "decode_rate": a.sequences * (a.output - 1) / (end - filled),
        "ttft_median_s": sorted(first_at)[len(first_at) // 2],
    }), flush=True)
