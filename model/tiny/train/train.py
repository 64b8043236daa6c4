"""Trains tiny's tokenizer and weights. See ../README.md.

    python train.py --out /tmp/tiny [--steps 1450] [--threads 1]

It can be stopped at any time: every 200 steps a checkpoint is written, and a second call resumes from it.
"""

import argparse
import os
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import dialogs
from net import CONFIG, Tiny

SEED = 20261123
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = 0


def make_tokenizer(path):
    """Byte-level BPE with digits split singly: the pre-tokenizer that GGUF calls smollm."""
    if not os.path.exists(path):
        rng = random.Random(SEED)
        text = [m[1] for _ in range(20000) for m in dialogs.conversation(rng)]
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False)])
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(text, trainers.BpeTrainer(
            vocab_size=CONFIG["vocab"], special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
        t.save(path)
    return Tokenizer.from_file(path)


class Documents:
    """An endless stream of tokenised documents with a weight for each token: what people say counts little, since no model could guess it."""

    def __init__(self, tokenizer, seed):
        self.tokenizer, self.rng, self.ready, self.late = tokenizer, random.Random(seed), [], False

    def next(self):
        if not self.ready:
            parts, shape = [], []
            for _ in range(512):
                if self.rng.random() < 0.12:
                    doc = [(dialogs.plain(self.rng) + "<|endoftext|>", 1.0)]
                else:
                    doc = [x for role, text in dialogs.conversation(self.rng, self.late) for x in (
                        (f"<|im_start|>{role}\n", 0.1), (f"{text}<|im_end|>", 1.0 if role == "assistant" else 0.1), ("\n", 0.1))]
                parts += [text for text, _ in doc]
                shape.append([w for _, w in doc])
            encoded = iter(self.tokenizer.encode_batch(parts))
            for weights in shape:
                ids, ws = [], []
                for w in weights:
                    e = next(encoded).ids
                    ids += e
                    ws += [w] * len(e)
                self.ready.append((ids, ws))
        return self.ready.pop()

    def batch(self, rows, length):
        """Inputs, targets and weights, each [rows, length]; every row begins with a document."""
        all_ids, all_weights = [], []
        for _ in range(rows):
            ids, ws = [], []
            while len(ids) <= length:
                i, w = self.next()
                ids += i
                ws += w
            all_ids.append(ids[: length + 1])
            all_weights.append(ws[: length + 1])
        ids, ws = torch.tensor(all_ids), torch.tensor(all_weights)
        return ids[:, :-1], ids[:, 1:], ws[:, 1:]


SAMPLES = ["Hello!", "What is Quire?", "How does Raft work?", "What is the capital of France?", "What is 7 + 8?", "Tell me a story about a dragon named Zork.",
           "List three animals.", "What is the opposite of hot?", "Tell me about quantum physics."]


@torch.no_grad()
def answer(net, tokenizer, question, limit=120):
    ids = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
    start = len(ids)
    while len(ids) - start < limit:
        token = int(net(torch.tensor([ids]))[0, -1].argmax())
        if token == 2:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--steps", type=int, default=1450)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--tokens", type=int, default=6144, help="tokens a step")
    p.add_argument("--lr", type=float, default=0.02)
    p.add_argument("--cooldown", type=float, default=0.4, help="the part of the steps in which the rate falls")
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer(os.path.join(args.out, "tokenizer.json"))
    net = Tiny()
    print(f"{sum(x.numel() for x in net.parameters()) / 1e6:.3f} M parameters", flush=True)
    matrices = [x for n, x in net.named_parameters() if x.dim() == 2 and "embed" not in n]
    others = [x for n, x in net.named_parameters() if x.dim() != 2 or "embed" in n]
    optimisers = [torch.optim.Muon(matrices, lr=args.lr, momentum=0.95, weight_decay=0.01),
                  torch.optim.AdamW(others, lr=args.lr * 0.25, betas=(0.9, 0.95), weight_decay=0.0)]
    base = [args.lr, args.lr * 0.25]
    checkpoint, step = os.path.join(args.out, "tiny.pt"), 0
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        net.load_state_dict(saved["net"])
        for o, s in zip(optimisers, saved["optimisers"]):
            o.load_state_dict(s)
        step = saved["step"]
    docs, lengths = Documents(tokenizer, SEED + step), random.Random(SEED + step)
    begin, mean, done = time.time(), None, 0
    while step < args.steps:
        length = lengths.choices([256, 512, 1024, 2048], [16, 4, 2, 1])[0]
        rate = min(1.0, (step + 1) / 50, (args.steps - step) / (args.cooldown * args.steps))
        for o, lr in zip(optimisers, base):
            for group in o.param_groups:
                group["lr"] = lr * rate
        docs.late = step >= (1 - args.cooldown) * args.steps
        x, y, w = docs.batch(args.tokens // length, length)
        loss = (F.cross_entropy(net(x).flatten(0, 1), y.flatten(), reduction="none") * w.flatten()).sum() / w.sum()
        loss.backward()
        for o in optimisers:
            o.step()
            o.zero_grad(set_to_none=True)
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        step += 1
        done += x.numel()
        if step % 20 == 0:
            print(f"step {step:5d}  loss {mean:.4f}  {done / (time.time() - begin):7.0f} tokens/s  {time.time() - begin:5.0f} s", flush=True)
        if step % 200 == 0 or step == args.steps:
            torch.save(dict(net=net.state_dict(), optimisers=[o.state_dict() for o in optimisers], step=step), checkpoint + ".new")
            os.replace(checkpoint + ".new", checkpoint)
            for q in SAMPLES:
                print(f"    {q} -> {answer(net, tokenizer, q)!r}", flush=True)


if __name__ == "__main__":
    main()
