#!/usr/bin/env python3
"""What loading a model costs: peak memory of all ranks of a replica together, and time against reading
the same file with cat.

Writes a Llama-shaped directory of BF16 weights (a block of random values, repeated: packing does not
look at values), loads it with `shoal-worker offline eval` on one prompt of two tokens, and watches the
processes. Time and memory are taken in rounds, interleaved: cat, a load that packs, one that packs and
writes the packed weights to disk (for which the program waits before it ends; a serving rank does not),
and one that finds them there. Peaks are sampled every 20 ms from smaps_rollup, at the moment when the sum of the
ranks is largest:

  RssAnon  memory that is the ranks' own: packed weights, scratch, KV
  RssFile  pages of files (the model, the programs) that they have mapped at this moment; these are
           pages of the page cache, which stand in the sum once for each rank that maps them
  Pss      each page divided by those who share it: what the machine really spends on the ranks

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
# What a rank needs besides weights, whatever the model: code, libraries, threads, the fabric's buffers.
PROCESS_BYTES = 20 << 20


def bf16_block(n_bytes):
    """Random BF16 values of about 0.01 to 0.03 with random signs."""
    signs = bytes(0x3c if value < 128 else 0xbc for value in range(256))
    block = bytearray(n_bytes)
    block[0::2] = os.urandom(n_bytes // 2)
    block[1::2] = os.urandom(n_bytes // 2).translate(signs)
    return bytes(block)


def shape_for(megabytes):
    wide = megabytes >= 500
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 2048 if wide else 1024, "intermediate_size": 5632 if wide else 2816,
        "num_attention_heads": 32 if wide else 16, "num_key_value_heads": 8 if wide else 4,
        "vocab_size": 8000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
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


def write_model(path, megabytes):
    """Returns the bytes of its weights."""
    config = shape_for(megabytes)
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


def memory_of(pid):
    """Rss, RssAnon, RssFile and Pss in bytes."""
    rollup = {}
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file.read().splitlines()[1:]:
                name, value = line.split()[:2]
                rollup[name[:-1]] = int(value) << 10
    except (OSError, ValueError):
        return None  # it has just ended
    if "Rss" not in rollup:
        return None
    anon = rollup["Anonymous"]
    return {"rss": rollup["Rss"], "anon": anon, "file": rollup["Rss"] - anon, "pss": rollup["Pss"]}


def load(args, model, cache, out, room_for_weights=1 << 40):
    """Seconds of the whole program, and the sums over all ranks at their peak."""
    words = [args.worker, "offline", "eval", "--model", model, "--ids", out + "/ids.json", "--out",
             out + "/out.safetensors", "--tp", str(args.ranks), "--threads", "1", "--last", "-o", "json",
             "--pack-cache", cache, "--chunk", str(args.chunk), "--activations", args.activations,
             "--pack-cache-max", str(room_for_weights)]
    begun = time.monotonic()
    peak = {"rss": 0, "anon": 0, "file": 0, "pss": 0}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL,
                          env=dict(os.environ, SHOAL_LOG="error")) as child:
        while child.poll() is None:
            samples = [memory_of(pid) for pid in family(child.pid)]
            total = {name: sum(one[name] for one in samples if one) for name in peak}
            if total["rss"] > peak["rss"]:
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
    rows = {"cat": [], "packing": [], "keeping": [], "kept": []}
    peaks = {"packing": [], "keeping": [], "kept": []}
    cache = os.path.join(room, "cache")
    os.mkdir(cache)
    load(args, model, cache, room)  # the digest of the model, which is kept, and warm page cache
    for _ in range(args.rounds):
        shutil.rmtree(os.path.join(cache, "packed"))
        if args.cold:
            forget(model)
        rows["cat"].append(cat(os.path.join(model, "model.safetensors")))
        for kind in peaks:
            if args.cold:
                forget(os.path.join(cache, "packed") if kind == "kept" else model)
            seconds, peak = load(args, model, cache, room, 1 if kind == "packing" else 1 << 40)
            rows[kind].append(seconds)
            peaks[kind].append(peak)
    return rows, peaks


def report(args, n_bytes, rows, peaks):
    print(f"model {n_bytes / 1e6:.0f} MB, {args.ranks} ranks of one thread, steps of {args.chunk} rows, "
          f"{args.activations}, {'from the disk' if args.cold else 'from the page cache'}, {args.rounds} rounds")
    print(f"cat      {spread(rows['cat'])}")
    worst = 0
    for kind in peaks:
        ratios = [mine / cats for mine, cats in zip(rows[kind], rows["cat"])]
        peak = max(peaks[kind], key=lambda one: one["rss"])
        worst = max(worst, peak["rss"])
        shares = ", ".join(f"{label} {peak[name] / n_bytes:.3f}" for label, name in
                           (("Rss", "rss"), ("RssAnon", "anon"), ("RssFile", "file"), ("Pss", "pss")))
        print(f"{kind:8} {spread(rows[kind])}, {median(ratios):.1f} times cat")
        print(f"         peak of all ranks, in bytes of the model: {shares}")
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", required=True, help="the shoal-worker program")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=64,
                        help="rows of a step: its scratch is no part of loading, but of the peak")
    parser.add_argument("--activations", default="native", help="native or f32")
    parser.add_argument("--cold", action="store_true",
                        help="from the disk: nothing of the files is in the page cache before")
    parser.add_argument("--directory", help="where the model is written (needs 2.2 times its bytes)")
    parser.add_argument("--rss-max", type=float, default=0,
                        help="fail when the peak is above this many times the model's bytes")
    parser.add_argument("--rss-processes", action="store_true",
                        help="allow each rank besides what a process needs without a model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-load-", dir=args.directory) as room:
        model = os.path.join(room, "model")
        os.mkdir(model)
        with open(os.path.join(room, "ids.json"), "w", encoding="utf-8") as file:
            json.dump([[1, 3]], file)
        n_bytes = write_model(model, args.megabytes)
        worst = report(args, n_bytes, *rounds(args, model, room))
    allowed = args.rss_max * n_bytes + (args.ranks * PROCESS_BYTES if args.rss_processes else 0)
    if args.rss_max > 0 and worst > allowed:
        sys.exit(f"load_bench: the ranks took {worst / 1e6:.0f} MB; {allowed / 1e6:.0f} are allowed")


if __name__ == "__main__":
    main()
