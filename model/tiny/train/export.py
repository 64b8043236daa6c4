"""Writes tiny.gguf from a checkpoint, and the golden outputs of the model as the file stores it.

    python export.py --out /tmp/tiny
"""

import argparse
import json
import os

import gguf
import numpy as np
import torch

from net import Tiny

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "tiny.gguf")
GOLDEN = os.path.join(HERE, "..", "testdata", "golden.json")
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
NAMES = {"embed.weight": "token_embd.weight", "norm": "output_norm.weight"}
LAYER = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "q.weight": "attn_q", "k.weight": "attn_k", "v.weight": "attn_v",
         "o.weight": "attn_output", "gate.weight": "ffn_gate", "up.weight": "ffn_up", "down.weight": "ffn_down"}
Q8 = gguf.GGMLQuantizationType.Q8_0


def tensor_name(name):
    if name in NAMES:
        return NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{LAYER[rest]}.weight"


def write(net, tokenizer_path):
    c = net.c
    tokenizer = json.load(open(tokenizer_path))
    vocab = tokenizer["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    special = {t["content"] for t in tokenizer["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    w = gguf.GGUFWriter(MODEL, "llama")
    w.add_name("tiny")
    w.add_description("Quire's built-in model: simple English, trained on text that Quire's makers wrote")
    w.add_license("apache-2.0")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_quantization_version(2)
    w.add_block_count(c["layers"])
    w.add_context_length(c["context"])
    w.add_embedding_length(c["hidden"])
    w.add_feed_forward_length(c["ffn"])
    w.add_head_count(c["heads"])
    w.add_head_count_kv(c["kv_heads"])
    w.add_rope_dimension_count(c["head_dim"])
    w.add_rope_freq_base(c["base"])
    w.add_layer_norm_rms_eps(c["eps"])
    w.add_vocab_size(c["vocab"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    w.add_token_merges(merges)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_pad_token_id(2)
    w.add_add_bos_token(False)
    w.add_add_space_prefix(False)
    w.add_chat_template(TEMPLATE)
    stored = {}
    for name, p in net.state_dict().items():
        data = p.numpy().astype(np.float32)
        if data.ndim == 1:
            w.add_tensor(tensor_name(name), data)
            stored[name] = p
        else:
            q = gguf.quants.quantize(data, Q8)
            w.add_tensor(tensor_name(name), q, raw_dtype=Q8)
            stored[name] = torch.from_numpy(gguf.quants.dequantize(q, Q8).reshape(data.shape))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{os.path.getsize(MODEL)} bytes")
    return stored


QUESTIONS = ["Hello!", "What is Quire?", "How does Raft work?", "What happens when a worker dies?", "What is the capital of France?",
             "What is 7 + 8?", "Tell me a story about a dragon.", "List three animals.", "What is the opposite of hot?", "Explain the paged KV cache."]
TEXTS = ["Once upon a time, there was a", "The capital of", "Quire is"]


@torch.no_grad()
def golden(net, tokenizer_path, tokens=32):
    """Greedy continuations with the weights as stored, and how far apart the best two logits were at the closest call."""
    from tokenizers import Tokenizer
    t = Tokenizer.from_file(tokenizer_path)
    net = net.double()
    cases = []
    prompts = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS] + TEXTS
    for prompt in prompts:
        ids = t.encode(prompt).ids
        n, margin, first = len(ids), float("inf"), None
        while len(ids) - n < tokens:
            logits = net(torch.tensor([ids]))[0, -1]
            if first is None:
                first = logits
            top = logits.topk(2)
            margin = min(margin, float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
            if ids[-1] in (0, 2):
                break
        cases.append({"prompt": prompt, "ids": ids[:n], "output": ids[n:], "text": t.decode(ids[n:], skip_special_tokens=True), "margin": round(margin, 4),
                      "logits": [round(float(x), 5) for x in first] if len(cases) < 3 else None})
        print(f"{margin:8.4f}  {cases[-1]['text']!r}")
    with open(GOLDEN, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True, help="the folder that train.py wrote to")
    args = p.parse_args()
    os.makedirs(os.path.dirname(GOLDEN), exist_ok=True)
    torch.set_num_threads(1)
    net = Tiny()
    net.load_state_dict(torch.load(os.path.join(args.out, "tiny.pt"))["net"])
    tokenizer = os.path.join(args.out, "tokenizer.json")
    net.load_state_dict(write(net, tokenizer))
    golden(net, tokenizer)


if __name__ == "__main__":
    main()
