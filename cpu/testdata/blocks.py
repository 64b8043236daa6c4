"""Writes blocks.json: for each type two blocks of random bytes and what gguf-py 0.19.0 reads in them.

Values are hexadecimal binary32. Scales are kept finite: random halves may be infinities or NaNs.
"""
import json
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Offsets of binary16 numbers inside a block.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
rng = np.random.default_rng(20261123)
out = []
for name, halves in HALVES.items():
    n, size = GGML_QUANT_SIZES[T[name]]
    for _ in range(2):
        b = rng.integers(0, 256, size, dtype=np.uint8)
        for h in halves:
            b[h:h + 2] = np.frombuffer(np.float16(rng.normal()).tobytes(), np.uint8)
        w = dequantize(b[None, :], T[name]).astype(np.float32).reshape(n)
        out.append({"type": name, "block": b.tobytes().hex(), "values": w.astype("<f4").tobytes().hex()})
with open("blocks.json", "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(o) for o in out) + "\n]\n")
