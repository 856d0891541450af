#!/usr/bin/env python3
"""Rows of noise over many prompts: what transformers itself loses in BF16 and with 8-bit activations, for recorded
models of tests/golden, on prompts drawn anew in sets of the recorded lengths.

    make_wide.py                         writes NAME.safetensors and rows.json beside this program
    make_wide.py --sets 256 --out DIR    more sets, for a closer look
    make_wide.py --worker shoal-worker   also prints what native mode loses on the same prompts, with standard errors

It needs torch, transformers, safetensors and gguf (the recorded ones: 2.15, 5.23) and checks itself: the recorded
logits and the recorded rows of each model must come out again from the recorded prompts before new ones are drawn.

The references are F32 (eager, CPU). `bf16`: weights and all sums in BF16. `act_q8_block32`: F32, but each matrix that
is stored as integers reads its input rounded to 8 bits in blocks of 32 (x / (amax / 127), to the nearest), as
Q8_0 does it. Inputs of the latents' heads (kv_b), routers, floats and attention stay exact there.
`act_q8_and_attention_bf16`: the same, and attention reads queries, keys, values and probabilities rounded to BF16. A
file keeps 4 of the vocabulary's columns and the id of the highest of all; rows.json has the noise of all columns and
of these ("kept")."""
import argparse
import contextlib
import json
import os
import pathlib
import re
import subprocess
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

import recorded_weights

HERE = pathlib.Path(__file__).resolve().parent
LENGTHS, COLUMNS, SEED = (1, 7, 33, 100), 4, 20260
MODELS = ("gguf-llama-kquants", "gguf-llama-q8_0", "gguf-llama-q4_0", "gguf-qwen2-q5_1", "gguf-qwen3moe-q8_0",
          "gguf-deepseek2-v3-q8_0", "qwen2-awq-g128", "qwen2-gptq-sym", "qwen2-ct-w4a16", "qwen2-ct-int8",
          "deepseek-v3-fp8", "deepseek-v4")
PER_TOKEN = ("qwen2-ct-int8",)  # recorded with one scale for the whole row


class Reference:
    """One recorded model in transformers."""

    def __init__(self, golden, name):
        self.config, self.weights, self.integers = recorded_weights.read_model(golden, HERE / "configs", name)
        self.name, self.directory = name, tempfile.TemporaryDirectory()
        path = pathlib.Path(self.directory.name)
        (path / "config.json").write_text(json.dumps(self.config))
        save_torch(self.weights, path / "model.safetensors", metadata={"format": "pt"})

    def load(self, dtype):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            self.directory.name, dtype=dtype, attn_implementation="eager", output_loading_info=True)
        if info["missing_keys"] or info["unexpected_keys"] or info.get("mismatched_keys"):
            raise SystemExit(f"{self.name}: {info}")
        model.set_experts_implementation("eager")
        return model.eval()

    def is_rounded(self, name):
        """Whether a parameter of the model (several experts' in one) is stored as integers."""
        one = re.sub(r"experts\.(\w+_proj)$", r"experts.0.\1.weight", name).replace("gate_up", "gate")
        return one in self.integers and "kv_b_proj" not in one


def logits_of(model, prompts):
    return [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy() for ids in prompts]


class RoundedInputs:
    """Within it torch's matrix products read 8-bit inputs where the reference's weights are integers."""

    def __init__(self, reference, model):
        self.plain, self.block = torch.nn.functional.linear, None if reference.name in PER_TOKEN else 32
        self.rounded = {p.untyped_storage().data_ptr() for n, p in model.named_parameters() if reference.is_rounded(n)}
        if len(self.rounded) < len(self.weights_wanted(reference)):
            raise SystemExit(f"{reference.name}: {len(self.rounded)} parameters of integers")

    @staticmethod
    def weights_wanted(reference):
        return {re.sub(r"experts\.\d+\.(gate|up)", "experts.gate", re.sub(r"experts\.\d+\.", "experts.", n))
                for n in reference.integers if "embed_tokens" not in n and "kv_b_proj" not in n
                and not re.search(r"experts\.\d+\.up_proj", n)}

    def round(self, x):
        blocks = x.reshape(*x.shape[:-1], -1, self.block or x.shape[-1])
        step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        return (torch.round(blocks / step) * step).reshape(x.shape)

    def __enter__(self):
        def linear(x, weight, bias=None):
            rounded = weight.untyped_storage().data_ptr() in self.rounded
            return self.plain(self.round(x) if rounded else x, weight, bias)
        torch.nn.functional.linear = linear

    def __exit__(self, *_):
        torch.nn.functional.linear = self.plain


@contextlib.contextmanager
def half_attention():
    """Within it the two products of attention (torch.matmul in transformers' eager code) read BF16."""
    plain = torch.matmul
    torch.matmul = lambda a, b: plain(a.bfloat16().float(), b.bfloat16().float())
    try:
        yield
    finally:
        torch.matmul = plain


def noise(wanted, found, columns=None):
    """Of one set: mean and largest difference, and positions whose highest logit is another one."""
    off = [np.abs(a.astype(np.float64) - b)[:, columns if columns is not None else slice(None)]
           for a, b in zip(wanted, found)]
    return {"mean_abs": sum(d.sum() for d in off) / sum(d.size for d in off),
            "max_abs": max(d.max() for d in off),
            "argmax_mismatch": int(sum((a.argmax(-1) != b.argmax(-1)).sum() for a, b in zip(wanted, found)))}


def in_sets(rows, per_set=len(LENGTHS)):
    return [rows[i:i + per_set] for i in range(0, len(rows), per_set)]


def check(reference, golden, exact, rows):
    """The recorded prompts give the recorded logits and rows again."""
    recorded = load_file(golden / reference.name / "golden.safetensors")
    told = json.loads((golden / reference.name / "golden.json").read_text())
    prompts = [recorded[f"p{i}.input_ids"].tolist() for i in range(len(LENGTHS))]
    wanted = [recorded[f"p{i}.logits"] for i in range(len(LENGTHS))]
    off = noise(wanted, logits_of(exact, prompts))["max_abs"]
    if off > told["tolerance_fp32_max_abs"] / 10:
        raise SystemExit(f"{reference.name}: recorded logits are {off} away")
    words = [f"logits {off:.1e}"]
    for row, run in rows.items():
        known = {"act_q8_block32": "act_int8_token"}.get(row, row) if reference.name in PER_TOKEN else row
        if known not in told["noise"]:
            continue
        found, was = noise(wanted, run(prompts)), told["noise"][known]
        words.append(f"{known} {found['mean_abs'] / was['mean_abs']:.4f} {found['max_abs'] / was['max_abs']:.4f} "
                     f"{found['argmax_mismatch']}/{was['argmax_mismatch']}")
    print(f"{reference.name}: of the recorded: {'; '.join(words)}", flush=True)


def native_of(worker, golden, name, prompts):
    """The logits of native mode."""
    model = golden / name / "model.gguf" if name.startswith("gguf-") else golden / name
    with tempfile.TemporaryDirectory() as directory:
        pathlib.Path(directory, "ids.json").write_text(json.dumps(prompts))
        subprocess.run([worker, "offline", "eval", f"--model={model}", f"--ids={directory}/ids.json", "--threads=1",
                        f"--out={directory}/out.safetensors", "-o", "json"], check=True, stdout=subprocess.DEVNULL)
        found = load_file(f"{directory}/out.safetensors")
    return [found[f"logits.{i}"].reshape(len(ids), -1) for i, ids in enumerate(prompts)]


def ratio(ours, theirs):
    """Of two lists, one number a set: the ratio of the sums and its standard error over the sets."""
    ours, theirs = np.array(ours, dtype=np.float64), np.array(theirs, dtype=np.float64)
    if theirs.sum() == 0:
        return float("nan"), float("nan")
    r = ours.sum() / theirs.sum()
    return r, np.sqrt(len(ours) / (len(ours) - 1) * ((ours - r * theirs) ** 2).sum()) / theirs.sum()


def of_columns(sets):
    """The mean difference, and the mean of the sets' largest."""
    return {"mean_abs": round(float(np.mean([s["mean_abs"] for s in sets])), 6),
            "max_abs_of_sets": round(float(np.mean([s["max_abs"] for s in sets])), 6)}


def print_native(name, native, rows):
    line = f"{name:24s}"
    for row, sets in rows.items():
        line += f" | {row}"
        for key, word in (("mean_abs", "mean"), ("max_abs", "max"), ("argmax_mismatch", "ids")):
            r, error = ratio([s[key] for s in native], [s[key] for s in sets])
            line += f" {word} {r:.3f}±{error:.3f}"
        line += f" ({sum(s['argmax_mismatch'] for s in native)}/{sum(s['argmax_mismatch'] for s in sets)})"
    print(line, flush=True)


def make(name, args):
    golden = pathlib.Path(args.golden)
    reference = Reference(golden, name)
    exact, half = reference.load(torch.float32), reference.load(torch.bfloat16)
    rows = {"bf16": lambda prompts: logits_of(half, prompts)}
    if reference.integers:
        rounded = RoundedInputs(reference, exact)

        def with_rounded(prompts):
            with rounded:
                return logits_of(exact, prompts)

        def with_both(prompts):
            with rounded, half_attention():
                return logits_of(exact, prompts)
        rows.update({"act_q8_block32": with_rounded, "act_q8_and_attention_bf16": with_both})
    check(reference, golden, exact, rows)
    draw = np.random.RandomState(args.seed + MODELS.index(name))
    vocab = reference.config["vocab_size"]
    prompts = [draw.randint(0, min(vocab - 4, 360), n).tolist() for _ in range(args.sets) for n in LENGTHS]
    columns = np.sort(draw.permutation(vocab)[:COLUMNS])
    wanted = logits_of(exact, prompts)
    measured = {}
    for row, run in rows.items():
        found = run(prompts)
        measured[row] = [{**noise(a, b), "kept": noise(a, b, columns)}
                         for a, b in zip(in_sets(wanted), in_sets(found))]
    if args.worker:
        native = native_of(args.worker, golden, name, prompts)
        print_native(name, [noise(a, b) for a, b in zip(in_sets(wanted), in_sets(native))], measured)
    every = np.concatenate(wanted)
    save_file({"ids": np.concatenate([np.array(p, dtype=np.int32) for p in prompts]),
               "columns": columns.astype(np.int32), "highest": every.argmax(-1).astype(np.int32),
               "logits": np.ascontiguousarray(every[:, columns])}, f"{args.out}/{name}.safetensors")
    return {row: {"argmax_mismatch": sum(s["argmax_mismatch"] for s in sets),
                  **of_columns(sets), "kept": of_columns([s["kept"] for s in sets])} for row, sets in measured.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--golden", default=HERE.parent)
    parser.add_argument("--out", default=HERE)
    parser.add_argument("--sets", type=int, default=64)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--worker")
    parser.add_argument("--only", default=",".join(MODELS))
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = {name: make(name, args) for name in args.only.split(",")}
    told = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "seed": args.seed,
            "sets": args.sets, "lengths": LENGTHS, "rows": rows}
    pathlib.Path(args.out, "rows.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
