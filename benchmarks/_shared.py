"What the benchmarks have in common: the machine in words, tables, contestants in turns."

import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from llama_course.model import Llama, hugging_face_settings, to_hugging_face


def machine() -> str:
    "The processor, its cores, and the versions that decide how fast it is."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine()
    )
    bf16 = ", bfloat16" if any("avx512_bf16" in line for line in lines) else ""
    return (
        f"{processor}{bf16}, {os.cpu_count()} cores, {torch.get_num_threads()} threads,"
        f" {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def markdown(
    heads: list[str],
    rows: list[list],  # the first column is text, the others are numbers
) -> str:
    "A table."
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def in_turns(
    actions: dict,  # name -> function without arguments
    rounds: int,
) -> dict:  # name -> seconds of each round
    "Each action once a round; every round another begins, so that other work hits all alike."
    seconds = {name: [] for name in actions}
    names = list(actions)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            began = time.perf_counter()
            actions[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(
    above: list[float],
    below: list[float],  # of the same rounds
) -> float:
    "The median of the ratios within a round: a slow minute of the machine stands on both sides."
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class Logits(nn.Module):
    "A model of `transformers`, called as ours is: tokens in, logits out."

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, use_cache=False).logits


def transformers_twin(model: Llama) -> nn.Module:
    "`LlamaForCausalLM` with the same weights."
    from transformers import LlamaConfig, LlamaForCausalLM

    twin = LlamaForCausalLM(
        LlamaConfig(**hugging_face_settings(model.config), attn_implementation="sdpa")
    )
    twin.load_state_dict(
        to_hugging_face(_weights(model), model.config), strict=not model.config.tie_embeddings
    )
    return Logits(twin)


def litgpt_twin(model: Llama) -> nn.Module:
    "litgpt's `GPT`, set up as a LLaMA, with the same weights."
    import litgpt

    c = model.config
    twin = litgpt.GPT(
        litgpt.Config(
            n_layer=c.n_layers,
            n_head=c.n_heads,
            n_query_groups=c.n_kv_heads,
            n_embd=c.dim,
            bias=False,
            vocab_size=c.vocab_size,
            padded_vocab_size=c.vocab_size,
            block_size=c.max_seq_len,
            rotary_percentage=1.0,
            rope_base=int(c.rope_theta),
            parallel_residual=False,
            norm_class_name="RMSNorm",
            norm_eps=c.norm_eps,
            mlp_class_name="LLaMAMLP",
            intermediate_size=c.hidden_dim,
        )
    )
    hf = to_hugging_face(_weights(model), c)
    names = {
        "attn.proj": "self_attn.o_proj",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
        "norm_1": "input_layernorm",
        "norm_2": "post_attention_layernorm",
    }
    weights = {
        "lm_head.weight": hf["lm_head.weight"],
        "transformer.wte.weight": hf["model.embed_tokens.weight"],
        "transformer.ln_f.weight": hf["model.norm.weight"],
    }
    for i in range(c.n_layers):
        ours, theirs = f"model.layers.{i}", f"transformer.h.{i}"
        weights |= {
            f"{theirs}.{new}.weight": hf[f"{ours}.{old}.weight"] for new, old in names.items()
        }
        qkv = [hf[f"{ours}.self_attn.{part}_proj.weight"] for part in "qkv"]
        weights[f"{theirs}.attn.qkv.weight"] = torch.cat(qkv)
    twin.load_state_dict(weights)
    return twin


def _weights(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items()}
