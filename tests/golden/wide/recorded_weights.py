"""The recorded models' weights as F32 under Hugging Face names, read from the files that lie in tests/golden, and
which of the matrices are stored as integers."""
import json
import re

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj", "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm", "attn_q_b": "self_attn.q_b_proj",
}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
       "output.weight": "lm_head.weight"}
PLAIN = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)


def unpermute(rows, heads):
    """Rows of q and k in the order of transformers: llama's files have rotated pairs side by side."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def name_in_layer(rest):
    if rest == "exp_probs_b.bias":
        return "mlp.gate.e_score_correction_bias"
    base, leaf = rest.rsplit(".", 1)
    return f"{LAYER[base]}.{leaf}"


def read_gguf(path, config):
    """(weights, names of those that are integers in the file)"""
    weights, integers, latents = {}, set(), {}
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(side) for side in reversed(tensor.shape)]
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32).reshape(shape)
        found = {}
        if tensor.name in TOP:
            found[TOP[tensor.name]] = values
        else:
            _, layer, rest = tensor.name.split(".", 2)
            before = f"model.layers.{layer}."
            experts = re.match(r"ffn_(gate|up|down)_exps\.weight", rest)
            if experts:
                for i, expert in enumerate(values):
                    found[f"{before}mlp.experts.{i}.{experts[1]}_proj.weight"] = expert
            elif rest in ("attn_k_b.weight", "attn_v_b.weight"):
                latents.setdefault(before, {})[rest[5]] = values
            else:
                if config["model_type"] == "llama" and rest in ("attn_q.weight", "attn_k.weight"):
                    values = unpermute(values, heads if rest == "attn_q.weight" else kv_heads)
                found[before + name_in_layer(rest)] = values
        weights.update(found)
        if tensor.tensor_type not in PLAIN:
            integers.update(found)
    for before, parts in latents.items():  # one matrix there, [heads, nope + v, rank]
        both = np.concatenate([parts["k"].transpose(0, 2, 1), parts["v"]], 1)
        weights[before + "self_attn.kv_b_proj.weight"] = both.reshape(-1, both.shape[2])
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in weights.items()}, integers


def nibbles(words, dim):
    """The eight values of each word, low first, along `dim`."""
    parts = torch.stack([(words.to(torch.int64) >> (4 * i)) & 15 for i in range(8)], dim + 1)
    shape = list(words.shape)
    shape[dim] *= 8
    return parts.reshape(shape)


def awq_matrix(parts):
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # where the eight of a word belong
    codes, zeros = nibbles(parts["qweight"], 1), nibbles(parts["qzeros"], 1)
    codes, zeros = (x.reshape(x.shape[0], -1, 8)[:, :, order].reshape(x.shape) for x in (codes, zeros))
    group = codes.shape[0] // zeros.shape[0]
    each = torch.arange(codes.shape[0]) // group
    return ((codes - zeros[each]).float() * parts["scales"].float()[each]).t()


def gptq_matrix(parts):
    codes, zeros, each = nibbles(parts["qweight"], 0), nibbles(parts["qzeros"], 1) + 1, parts["g_idx"].long()
    return ((codes - zeros[each]).float() * parts["scales"].float()[each]).t()


def packed_matrix(parts):
    codes, scales = nibbles(parts["weight_packed"], 1) - 8, parts["weight_scale"].float()
    return codes.float() * scales.repeat_interleave(codes.shape[1] // scales.shape[1], 1)


def fp8_matrix(parts):
    codes = parts["weight"].float()
    scales = parts["weight_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes * scales[:codes.shape[0], :codes.shape[1]]


def int8_matrix(parts):
    return parts["weight"].float() * parts["weight_scale"].float()


KINDS = (("qzeros", "g_idx", gptq_matrix), ("qzeros", "qweight", awq_matrix),
         ("weight_packed", "weight_scale", packed_matrix), ("weight", "weight_scale_inv", fp8_matrix),
         ("weight", "weight_scale", int8_matrix))


def read_directory(path):
    """(weights, names of those that are integers there); what is not quantized keeps its type."""
    bases, weights, integers = {}, {}, set()
    for name, tensor in load_file(path / "model.safetensors").items():
        base, leaf = name.rsplit(".", 1) if "." in name else ("", name)
        bases.setdefault(base, {})[leaf] = tensor
    for base, parts in bases.items():
        before = base + "." if base else ""
        for first, second, read in KINDS:
            if first in parts and second in parts:
                weights[before + "weight"] = read(parts).contiguous()
                if read is not fp8_matrix:
                    integers.add(before + "weight")
                # AutoGPTQ writes biases of zeros where the architecture has none.
                parts = {"bias": parts["bias"]} if "bias" in parts and parts["bias"].any() else {}
                break
        weights.update({before + leaf: tensor for leaf, tensor in parts.items()})
    return weights, integers


def read_model(golden, configs, name):
    """(configuration, weights, names of the matrices of integers) of one recorded model"""
    if name.startswith("gguf-"):
        config = json.loads((configs / f"{name}.json").read_text())
        return (config, *read_gguf(golden / name / "model.gguf", config))
    config = json.loads((golden / name / "config.json").read_text())
    config.pop("quantization_config", None)
    return (config, *read_directory(golden / name))
