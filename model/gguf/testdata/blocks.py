"""Makes blocks.json: random blocks of every tensor type and what gguf-py reads in them.

Made with gguf 0.19.0 and numpy 2.4.6; the random generator is seeded.
"""

import base64
import json
import pathlib

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

BLOCKS = 3
# Where the half-precision scales of a block lie. Random bytes would make some of them NaN.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

rng = np.random.default_rng(20240229)
out = {}
for name in ["F32", "F16", "BF16", *SCALES]:
    t = T[name]
    length, size = GGML_QUANT_SIZES[t]
    n = BLOCKS * (256 // length if name in ("F32", "F16", "BF16") else 1)
    data = rng.integers(0, 256, (n, size), dtype=np.uint8)
    if name in SCALES:
        for at in SCALES[name]:
            scale = (rng.standard_normal(n) * np.exp2(rng.integers(-20, 4, n).astype(float))).astype("<f2")
            data[:, at:at + 2] = scale.view(np.uint8).reshape(n, 2)
    else:
        x = (rng.standard_normal(n) * np.exp2(rng.integers(-30, 4, n).astype(float))).astype("<f4")
        if name == "F16":
            data = x.astype("<f2").view(np.uint8)
        elif name == "BF16":
            data = (x.view("<u4") >> 16).astype("<u2").view(np.uint8)
        else:
            data = x.view(np.uint8)
    flat = np.ascontiguousarray(data).reshape(-1)
    if name == "F16":  # gguf-py has no reader of its own for it
        values = flat.view("<f2").astype("<f4")
    elif name == "F32":
        values = flat.view("<f4")
    else:
        values = quants.dequantize(flat.reshape(1, -1), t).astype("<f4").reshape(-1)
    out[name] = {"data": base64.b64encode(flat.tobytes()).decode(), "values": base64.b64encode(values.tobytes()).decode()}
pathlib.Path(__file__).with_name("blocks.json").write_text(json.dumps(out, indent=1) + "\n")
