#!/usr/bin/env python3
"""What loading a model costs: peak memory of all ranks of a replica together, and time against reading
the same file with cat.

Writes a Llama-shaped directory of BF16 weights (a block of random values, repeated: packing does not
look at values), loads it with `shoal-worker offline eval` on one prompt, and watches the processes.
Time and memory are taken in rounds, interleaved: cat, a load that packs, one that packs and
writes the packed weights to disk (for which the program waits before it ends; a serving rank does not),
and one that finds them there. At the end one that packs and runs a prompt that fills a step, so that
all scratch is in use. Peaks are sampled every 20 ms from smaps, at the moment when the sum of the
ranks is largest, which is printed in parts, each a share of the model's bytes:

  own       memory that is the ranks' own: packed weights, scratch, KV, heaps
  kept      packed weights of an earlier start, mapped from their file
  exchange  memory that the ranks share to exchange partial sums, counted once for each that uses it
  model     pages of the model's files that are mapped at this moment
  programs  pages of the worker and its libraries; kept, model and programs are pages of the page cache, which
            stand in the sum once for each rank that maps them, and which the system may take back
  Pss       each page divided by those who share it: what the machine really spends on the ranks

  load_bench.py --worker build/release/bin/shoal-worker --megabytes 1000 --ranks 4 --rounds 3
"""
import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

SAMPLE_S = 0.02
PARTS = ("own", "kept", "exchange", "model", "programs")
# What a rank that runs may need besides weights, whatever the model: code, libraries, threads, and the
# fabric's buffers.
PROCESS_BYTES = 30 << 20


def bf16_block(n_bytes):
    """Random BF16 values of about 0.01 to 0.03 with random signs."""
    signs = bytes(0x3c if value < 128 else 0xbc for value in range(256))
    block = bytearray(n_bytes)
    block[0::2] = os.urandom(n_bytes // 2)
    block[1::2] = os.urandom(n_bytes // 2).translate(signs)
    return bytes(block)


def shape_for(megabytes, tied):
    wide = megabytes >= 500
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 2048 if wide else 1024, "intermediate_size": 5632 if wide else 2816,
        "num_attention_heads": 32 if wide else 16, "num_key_value_heads": 8 if wide else 4,
        "vocab_size": 8000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    ends = sum(2 * rows * columns for _, rows, columns in tensors(config, 0))
    layer = sum(2 * rows * columns for _, rows, columns in tensors(config, 1)) - ends
    config["num_hidden_layers"] = max(1, round((megabytes * 1e6 - ends) / layer))
    return config


def tensors(config, n_layers):
    """(name, rows, columns) of each; vectors have 0 columns counted as 1."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", config["vocab_size"], hidden
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", config["vocab_size"], hidden
    yield "model.norm.weight", hidden, 1
    for layer in range(n_layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", hidden, 1
        yield at + "post_attention_layernorm.weight", hidden, 1
        yield at + "self_attn.q_proj.weight", hidden, hidden
        yield at + "self_attn.k_proj.weight", kv, hidden
        yield at + "self_attn.v_proj.weight", kv, hidden
        yield at + "self_attn.o_proj.weight", hidden, hidden
        yield at + "mlp.gate_proj.weight", ffn, hidden
        yield at + "mlp.up_proj.weight", ffn, hidden
        yield at + "mlp.down_proj.weight", hidden, ffn


def write_model(path, megabytes, tied=False):
    """Returns the bytes of its weights."""
    config = shape_for(megabytes, tied)
    header, at = {}, 0
    for name, rows, columns in tensors(config, config["num_hidden_layers"]):
        shape = [rows] if columns == 1 else [rows, columns]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * rows * columns]}
        at += 2 * rows * columns
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    block = bf16_block(8 << 20)
    with open(os.path.join(path, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for left in range(at, 0, -len(block)):
            file.write(block[:left])
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return at


def family(pid):
    """A process and its children."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [pid] + [int(child) for child in file.read().split()]
    except OSError:
        return []


def part_of(path, model):
    if path.startswith(model):
        return "model"
    if path.startswith(("/memfd:", "/dev/shm", "/dev/zero")):
        return "exchange"
    if path.endswith(".weights"):
        return "kept"
    return "programs" if path.startswith("/") else "own"


def memory_of(pid, model):
    """Bytes of a process in memory: Rss by parts, and Pss; None when it has just ended."""
    total, file_part = {"pss": 0, **{part: 0 for part in PARTS}}, "own"
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split(maxsplit=5)
                if not words[0].endswith(":"):
                    file_part = part_of(words[5].strip() if len(words) > 5 else "", model)
                elif words[0] == "Rss:":
                    rss = int(words[1]) << 10
                    total[file_part] += rss
                elif words[0] == "Pss:":
                    total["pss"] += int(words[1]) << 10
                elif words[0] == "Anonymous:" and file_part in ("kept", "model", "programs"):
                    total[file_part] -= int(words[1]) << 10  # written pages of a private mapping
                    total["own"] += int(words[1]) << 10
    except (OSError, ValueError):
        return None
    return total


def rss(parts):
    return sum(parts[part] for part in PARTS)


def load(args, model, room, cache="cache", room_for_weights=1 << 40, ids="ids"):
    """Seconds of the whole program, and the sums over all ranks at their peak."""
    words = [args.worker, "offline", "eval", "--model", model, "--ids", f"{room}/{ids}.json", "--out",
             room + "/out.safetensors", "--tp", str(args.ranks), "--threads", "1", "--last", "-o", "json",
             "--pack-cache", os.path.join(room, cache), "--activations", args.activations,
             "--pack-cache-max", str(room_for_weights)]
    if args.chunk:
        words += ["--chunk", str(args.chunk)]
    begun = time.monotonic()
    peak = {"pss": 0, **{part: 0 for part in PARTS}}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL,
                          env=dict(os.environ, SHOAL_LOG="error")) as child:
        while child.poll() is None:
            samples = [memory_of(pid, model) for pid in family(child.pid)]
            total = {name: sum(one[name] for one in samples if one) for name in peak}
            if rss(total) > rss(peak):
                peak = total
            time.sleep(SAMPLE_S)
    if child.returncode != 0:
        sys.exit(f"load_bench: {args.worker} ended with {child.returncode}")
    return time.monotonic() - begun, peak


def forget(folder):
    """Takes the files of a folder out of the page cache: what follows comes from the disk."""
    for name in os.listdir(folder):
        file = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def cat(path):
    begun = time.monotonic()
    subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun


def median(values):
    return statistics.median(values)


def spread(values):
    return f"{median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def rounds(args, model, room):
    """Seconds of cat and of each kind of load, and the peaks of each kind."""
    kinds = {"packing": 1, "keeping": 1 << 40, "kept": 1 << 40}  # room for packed weights
    seconds = {kind: [] for kind in ("cat", *kinds)}
    peaks = {kind: [] for kind in kinds}
    cache = os.path.join(room, "cache")
    os.mkdir(cache)
    load(args, model, room, room_for_weights=1)  # the digest of the model, which is kept, and warm page cache
    for _ in range(args.rounds):
        shutil.rmtree(os.path.join(cache, "packed"), ignore_errors=True)
        if args.cold:
            forget(model)
        seconds["cat"].append(cat(os.path.join(model, "model.safetensors")))
        for kind, room_for_weights in kinds.items():
            if args.cold:
                forget(os.path.join(cache, "packed") if kind == "kept" else model)
            took, peak = load(args, model, room, room_for_weights=room_for_weights)
            seconds[kind].append(took)
            peaks[kind].append(peak)
    if args.full_step:
        peaks["a step"] = [load(args, model, room, room_for_weights=1, ids="step")[1]]
    return seconds, peaks


def report(args, n_bytes, seconds, peaks):
    """Prints all; returns the largest peak of a load, and that of a step."""
    rows = f"{args.chunk} rows" if args.chunk else "the default's rows"
    print(f"model {n_bytes / 1e6:.0f} MB, {args.ranks} ranks of one thread, steps of {rows}, "
          f"{args.activations}, {'from the disk' if args.cold else 'from the page cache'}, {args.rounds} rounds")
    print(f"cat      {spread(seconds['cat'])}")
    worst = {"load": 0, "step": 0}
    for kind, taken in peaks.items():
        if kind in seconds:
            ratios = [mine / cats for mine, cats in zip(seconds[kind], seconds["cat"])]
            print(f"{kind:8} {spread(seconds[kind])}, {median(ratios):.1f} times cat")
        else:
            print(kind)
        peak = max(taken, key=rss)
        what = "load" if kind in seconds else "step"
        worst[what] = max(worst[what], rss(peak))
        shares = ", ".join(f"{part} {peak[part] / n_bytes:.3f}" for part in PARTS)
        print(f"         peak of all ranks: Rss {rss(peak) / n_bytes:.3f} of the model = {shares}; "
              f"Pss {peak['pss'] / n_bytes:.3f}")
    return worst


def write_ids(path, n):
    with open(path, "w", encoding="utf-8") as file:
        json.dump([[1 + i % 97 for i in range(n)]], file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", required=True, help="the shoal-worker program")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=0, help="rows of a step; the worker's default")
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--full-step", action="store_true",
                        help="at the end also the peak of a load and a prompt of 512 tokens")
    parser.add_argument("--activations", default="native", help="native or f32")
    parser.add_argument("--cold", action="store_true",
                        help="from the disk: nothing of the files is in the page cache before")
    parser.add_argument("--directory", help="where the model is written (needs 2.2 times its bytes)")
    parser.add_argument("--rss-max", type=float, default=0,
                        help="fail when the peak of a load is above this many times the model's bytes; a "
                        "step may take 30 MiB a rank besides")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-load-", dir=args.directory) as room:
        model = os.path.join(room, "model")
        os.mkdir(model)
        write_ids(os.path.join(room, "ids.json"), 2)
        write_ids(os.path.join(room, "step.json"), 512)
        n_bytes = write_model(model, args.megabytes, args.tied)
        worst = report(args, n_bytes, *rounds(args, model, room))
    for what, processes in (("load", 0), ("step", args.ranks * PROCESS_BYTES)):
        allowed = args.rss_max * n_bytes + processes
        if args.rss_max > 0 and worst[what] > allowed:
            sys.exit(f"load_bench: the ranks took {worst[what] / 1e6:.0f} MB in a {what}; "
                     f"{allowed / 1e6:.0f} are allowed")


if __name__ == "__main__":
    main()
