"""CPU time of one all-decode step of vLLM's own v1 Scheduler and KVCacheManager, unmodified, prefix caching on.

usage: vllm_step.py [--running 256,1024] [--prompt 512] [--steps 400]
Prints a JSON object. A step is schedule() and update_from_output(); no model runs, and nothing needs a GPU.
Times are of the process, so that other processes on the machine count little. Needs vllm (see bench/README.md).
"""
import argparse
import json
import os
import statistics
import tempfile
import time

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import vllm
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK, BLOCKS, CONTEXT = 16, 200_000, 16_384
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "hidden_act": "silu",
}


def scheduler(model, running):
    cache = CacheConfig(block_size=BLOCK, gpu_memory_utilization=0.9, enable_prefix_caching=True)
    cache.num_gpu_blocks = BLOCKS
    config = VllmConfig(
        model_config=ModelConfig(model=model, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=CONTEXT, seed=1),
        scheduler_config=SchedulerConfig(max_model_len=CONTEXT, is_encoder_decoder=False, max_num_seqs=running,
                                         max_num_batched_tokens=8192, async_scheduling=False),
        cache_config=cache, device_config=DeviceConfig("cpu"))
    config.cache_config.num_gpu_blocks = BLOCKS
    layers = FullAttentionSpec(block_size=BLOCK, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
    kv = KVCacheConfig(num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layers"], layers)])
    return Scheduler(config, kv, StructuredOutputManager(config), block_size=BLOCK)


def measure(model, running, prompt, steps):
    s = scheduler(model, running)
    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK, sha256)
    sampling = SamplingParams(ignore_eos=True, max_tokens=4000)
    for i in range(running):
        tokens = [(i * 131 + j * 7) % 100_000 for j in range(prompt)]
        s.add_request(Request(str(i), tokens, sampling, None, block_hasher=hasher))
    times = []
    while len(times) < steps:
        began = time.process_time()
        out = s.schedule()
        planned = time.process_time()
        ids = list(out.num_scheduled_tokens)
        done = [[7] if s.requests[r].num_computed_tokens >= s.requests[r].num_tokens else [] for r in ids]
        result = ModelRunnerOutput(req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=done)
        ready = time.process_time()
        s.update_from_output(out, result)
        ended = time.process_time()
        if len(ids) == running and all(n == 1 for n in out.num_scheduled_tokens.values()):
            times.append(planned - began + ended - ready)
    times = sorted(times[steps // 20:])  # without the first, which warm up
    return {"running": running, "steps": len(times), "median_ms": 1e3 * statistics.median(times), "mean_ms": 1e3 * statistics.mean(times)}


args = argparse.ArgumentParser()
args.add_argument("--running", default="256,1024")
args.add_argument("--prompt", type=int, default=512)
args.add_argument("--steps", type=int, default=400)
a = args.parse_args()
with tempfile.TemporaryDirectory() as model:
    with open(os.path.join(model, "config.json"), "w") as f:
        json.dump(LLAMA_8B, f)
    rows = [measure(model, int(n), a.prompt, a.steps) for n in a.running.split(",")]
print(json.dumps({"vllm": vllm.__version__, "rows": rows}))
