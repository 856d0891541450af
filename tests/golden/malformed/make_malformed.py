#!/usr/bin/env python3
"""Writes the malformed model files of this folder and the tables of their expected errors. No random number is drawn.

    make_malformed.py            writes gguf/, safetensors/ and seals/ beside this program
    make_malformed.py --check    exits with 1 when what lies there is something else
    make_malformed.py --large D  writes into D the files that are too large to be kept, with their table

Numbers are those of the list of malformed inputs (G GGUF, S safetensors; the seals' row has no number). A row of a
table: file, status, words that the error must contain. Its first line says of what has no file where it is tested."""
import os
import struct
import sys

import gguf_draft as g
from safetensors_cases import CASES as SAFETENSORS_CASES, LARGE as SAFETENSORS_LARGE, SHARDS
from seal_cases import CASES as SEAL_CASES, LARGE as SEAL_LARGE

HERE = os.path.dirname(os.path.abspath(__file__))
Q, K, NORM = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "output_norm.weight"
HEADS, KV_HEADS = "llama.attention.head_count", "llama.attention.head_count_kv"
BASE, EPS, ROPE = "llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon", "llama.rope.dimension_count"
ALIGNMENT, TOKENS = "general.alignment", "tokenizer.ggml.tokens"
NAN, INF = float("nan"), float("inf")
GGUF_CASES = []


def case(name, words, status="INVALID"):
    """The function changes a right llama, or returns the bytes of the whole file."""
    def keep(change):
        GGUF_CASES.append((name + ".gguf", status, words, change))
        return change
    return keep


def simple(name, words, change, status="INVALID"):
    """A change whose value is of no interest."""
    def run(draft):
        change(draft)
    case(name, words, status)(run)


def set_tensor(tensor, /, **members):
    def run(draft):
        for name, value in members.items():
            setattr(draft.tensor(tensor), name, value)
    return run


def shape(kind, columns, rows):
    return set_tensor(Q, kind=kind, dims=[columns, rows], data_bytes=576)


def member(**members):
    def run(draft):
        for name, value in members.items():
            setattr(draft, name, value)
    return run


def first_name(name, size=None):
    def run(draft):
        draft.keys[0].name, draft.keys[0].name_size = name, size
    return run


case("01-empty", "the file is empty")(lambda d: b"")
case("02-three-bytes", "ends inside the magic")(lambda d: b"GGU")
simple("03-magic", "the magic is 46 55 47 47", member(magic=b"FUGG"))
simple("04-version-0", "version 0 is not read", member(version=0))
simple("05-version-1", "version 1 is not read", member(version=1))
simple("06-version-4", "version 4 is not read", member(version=4))
simple("07-version-swapped", "byte-swapped", member(version=3 << 24))
simple("08-tensors-huge", "tensors; at most 262144", member(n_tensors=2 ** 64 - 1))
simple("08b-tensors-many", "says 200000 tensors, but", member(n_tensors=200000))
simple("09-keys-huge", "keys; at most 65536", member(n_keys=2 ** 64 - 1))
simple("10-keys-many", "says 60000 keys, but", member(n_keys=60000))
simple("11-key-length", "a key at byte 24 has 18446744073709551615 bytes", first_name(b"k", 2 ** 64 - 1))
simple("11b-key-long", "ends inside a key", first_name(b"k", 65000))
simple("12-key-empty", "has 0 bytes; 1 to 65535", first_name(b""))
simple("13-key-nul", "not UTF-8 without NUL", first_name(b"gen\0ral.architecture"))
simple("13b-key-utf8", "not UTF-8 without NUL", first_name(b"gen\xffral.architecture"))
simple("13c-key-surrogate", "not UTF-8 without NUL", first_name(b"\xed\xa0\x80eral"))
simple("13d-key-overlong", "not UTF-8 without NUL", first_name(b"\xc0\xafneral"))
simple("14-value-kind", "unknown value kind 13", lambda d: setattr(d.key("llama.block_count"), "kind", 13))
simple("14b-element-kind", "unknown element kind 77", lambda d: d.set_array_head("general.tags", 77, 0))
simple("15-key-twice", "key llama.block_count appears twice", lambda d: d.add_key("llama.block_count", g.U32, g.u32(1)))
simple("16-nested", "array of arrays", lambda d: d.set("general.tags", g.ARRAY, (g.u32(g.ARRAY) + g.u64(1)) * 1001))
simple("17-array-overflow", "2305843009213693952 elements", lambda d: d.set_array_head("general.tags", g.U64, 1 << 61))
simple("18-empty-texts", "4294967296 elements of at least 8 bytes",
       lambda d: d.set_array_head("general.tags", g.TEXT, 1 << 32))
simple("19-alignment-0", "general.alignment is 0;", lambda d: d.set_u32(ALIGNMENT, 0))
simple("19b-alignment-13", "general.alignment is 13;", lambda d: d.set_u32(ALIGNMENT, 13))
simple("19c-alignment-huge", "general.alignment is 2147483648;", lambda d: d.set_u32(ALIGNMENT, 1 << 31))
simple("20-alignment-i32", "general.alignment is I32; U32", lambda d: d.set_i32(ALIGNMENT, 32))
simple("20b-alignment-twice", "general.alignment appears twice",
       lambda d: [d.add_key(ALIGNMENT, g.U32, g.u32(n)) for n in (32, 64)])
simple("21-tensor-name", "has 64 bytes; 1 to 63", set_tensor(Q, name=b"a" * 64))
simple("21b-tensor-no-name", "has 0 bytes; 1 to 63", set_tensor(Q, name_size=0))
simple("22-tensor-twice", "tensor output_norm.weight appears twice", lambda d: d.add_tensor(NORM, g.TYPE_F32, 32, 1))
simple("23-dims-0", "has 0 dimensions; 1 to 4", set_tensor(NORM, n_dims=0))
simple("23b-dims-5", "has 5 dimensions", set_tensor(NORM, n_dims=5))
simple("23c-dims-huge", "has 4294967295 dimensions", set_tensor(NORM, n_dims=2 ** 32 - 1))
simple("24-side-negative", "dimension 1 is -32; it must be above 0", shape(g.TYPE_Q4_0, 32, -32))
simple("25-side-zero", "dimension 1 is 0; it must be above 0", shape(g.TYPE_Q4_0, 32, 0))
simple("26-product", "product of its dimensions overflows", shape(g.TYPE_F16, 1 << 32, 1 << 32))
simple("27-bytes", "its size in bytes overflows", shape(g.TYPE_I64, 1 << 31, 1 << 31))


@case("28-sum-wraps", "reach past the end")
def sum_wraps(draft):
    """Each size is right for its type, and their sum wraps a 64-bit counter."""
    for name, offset in ((Q, None), (K, 0x7FFFFFFFFFFFFFC0)):
        set_tensor(name, kind=g.TYPE_I8, dims=[0x7FFFFFFFFFFFFFC0, 1], data_bytes=576, offset=offset)(draft)


simple("29-row-of-33", "33 values are not whole Q4_0 blocks", shape(g.TYPE_Q4_0, 33, 32))
simple("30-type-unknown", "has no type 99", shape(99, 32, 32))
simple("30b-type-removed", "has no type 4", shape(4, 32, 32))
simple("30c-type-negative", "has no type -1", shape(2 ** 32 - 1, 32, 32))
simple("30d-type-of-our-own", "has no type 1001", shape(1001, 32, 32))
simple("31-offset-crooked", "no multiple of the alignment 32", set_tensor(NORM, offset=33))
simple("32-offset-past", "offset 1048576 and 128 bytes reach past", set_tensor(NORM, offset=1 << 20))
simple("33-overlap", "token_embd.weight and output_norm.weight over", set_tensor(NORM, offset=0))
simple("34-offset-wraps", "reach past the end", set_tensor(NORM, offset=2 ** 64 - 32))
case("35-cut", "reach past the end")(lambda d: d.write()[:-1])
simple("36-tokens-fewer", "is 8, but tokenizer.ggml.tokens has 7", lambda d: d.set_texts(TOKENS, 7))
simple("36b-types-more", "has 9 elements; the vocabulary has 8",
       lambda d: d.set_i32s("tokenizer.ggml.token_type", 9, 1))
simple("36c-no-vocabulary", "key llama.vocab_size is missing",
       lambda d: (d.remove_key(TOKENS), d.remove_key("llama.vocab_size")))
simple("36d-tokens-integers", "elements are I32; a text would be right", lambda d: d.set_i32s(TOKENS, 8, 1))
simple("37-bos", "bos_token_id is 8; 0 to 7", lambda d: d.set_u32("tokenizer.ggml.bos_token_id", 8))
simple("37b-eos", "eos_token_id is 4294967295; 0 to 7",
       lambda d: d.set_u32("tokenizer.ggml.eos_token_id", 2 ** 32 - 1))
simple("37c-eot", "eot_token_id is -1; 0 to 7", lambda d: d.set_i32("tokenizer.ggml.eot_token_id", -1))
simple("38-no-heads", "head_count is 0; 1 to 512", lambda d: d.set_u32(HEADS, 0))
simple("38b-kv-heads-more", "head_count_kv is 3; 1 to 2", lambda d: d.set_u32(KV_HEADS, 3))
simple("38c-kv-heads-none", "head_count_kv is 0; 1 to 2", lambda d: d.set_u32(KV_HEADS, 0))
simple("38d-kv-heads-uneven", "4 query heads cannot share 3", lambda d: (d.set_u32(HEADS, 4), d.set_u32(KV_HEADS, 3)))
simple("38e-heads-uneven", "32 is no multiple of 3 heads", lambda d: (d.set_u32(HEADS, 3), d.set_u32(KV_HEADS, 3)))
simple("39-layers-80", "tensor blk.1.attn_norm.weight [32, 1] is missing; the conf",
       lambda d: d.set_u32("llama.block_count", 80))
simple("39b-layer-more", "blk.1.attn_norm.weight is no part of architecture",
       lambda d: d.add_tensor("blk.1.attn_norm.weight", g.TYPE_F32, 32, 1), "UNSUPPORTED")
simple("39c-layers-absurd", "block_count is 4000000000; 1 to 512", lambda d: d.set_u32("llama.block_count", 4000000000))
simple("40-eps-0", "rms_epsilon is 0;", lambda d: d.set_f32(EPS, 0))
simple("40b-eps-nan", "rms_epsilon is nan;", lambda d: d.set_f32(EPS, NAN))
simple("40c-eps-inf", "rms_epsilon is inf;", lambda d: d.set_f32(EPS, INF))
simple("40d-base-nan", "freq_base is nan;", lambda d: d.set_f32(BASE, NAN))
simple("40e-base-0", "freq_base is 0;", lambda d: d.set_f32(BASE, 0))
simple("40f-rope-odd", "dimension_count is 15; an even number", lambda d: d.set_u32(ROPE, 15))
simple("40g-rope-wide", "dimension_count is 18; 2 to 16", lambda d: d.set_u32(ROPE, 18))
simple("41-rows", "attn_k.weight has shape [32, 32, 1, 1] in 2 dimensions; the configuration implies [32, 16]",
       set_tensor(K, dims=[32, 32]))
simple("41b-columns", "ffn_up.weight has shape [64, 32, 1, 1]", set_tensor("blk.0.ffn_up.weight", dims=[64, 32]))
simple("41c-hidden", "token_embd.weight has shape [32, 8, 1, 1] in 2 dimensions; the configuration implies [64, 8]",
       lambda d: d.set_u32("llama.embedding_length", 64))
simple("41d-third-side", "attn_q.weight has shape [32, 32, 2, 1]", set_tensor(Q, dims=[32, 32, 2]))
simple("flag-of-2", "a BOOL is 2", lambda d: d.set("tokenizer.ggml.add_bos_token", g.BOOL, b"\2"))
simple("right", "", lambda d: None, "OK")

NOTES = {
    "gguf": "42 has no file: a FIFO, a folder, /dev/zero and a link that leads out are made by gguf_structure_test.",
    "safetensors": "20 and 21 are made when the test runs (--large); index files stand beside s1 to s3.",
    "seals": "Cut signatures need a key pair: manifest_test. A million files are made when the test runs (--large).",
}


def gguf_bytes(change):
    draft = g.Gguf()
    changed = change(draft)
    return draft.write() if changed is None else changed


def safetensors_bytes(content):
    """(header, bytes of data) or the file itself."""
    if isinstance(content, bytes):
        return content
    header, n_data = content
    header = header.encode("latin-1")
    return struct.pack("<Q", len(header)) + header + bytes(n_data)


def folder_of(name, cases):
    """{path: bytes} of one list."""
    files, rows = {}, [f"# file, status, words of the error. {NOTES[name]}\n"]
    for file, status, words, content in cases:
        files[f"{name}/{file}"] = content
        rows.append(f"{file}\t{status}\t{words}\n")
    files[f"{name}/expected.txt"] = "".join(rows).encode()
    return files


def all_files():
    files = folder_of("gguf", [(*row[:3], gguf_bytes(row[3])) for row in GGUF_CASES])
    files |= folder_of("safetensors", [(*row[:3], safetensors_bytes(row[3])) for row in SAFETENSORS_CASES])
    files |= {f"safetensors/{name}": safetensors_bytes(content) for name, content in SHARDS.items()}
    files |= folder_of("seals", [(*row[:3], row[3].encode("latin-1")) for row in SEAL_CASES])
    return files


def large_files():
    files = folder_of("safetensors", [(*row[:3], safetensors_bytes(row[3]())) for row in SAFETENSORS_LARGE])
    return files | folder_of("seals", [(*row[:3], row[3]().encode("latin-1")) for row in SEAL_LARGE])


def lying_there():
    found = set()
    for name in NOTES:
        found |= {f"{name}/{file}" for file in os.listdir(os.path.join(HERE, name))}
    return found


def check(files):
    wrong = sorted(lying_there() ^ set(files))
    for path in sorted(set(files) - set(wrong)):
        with open(os.path.join(HERE, path), "rb") as file:
            if file.read() != files[path]:
                wrong.append(path)
    print("\n".join(f"{path}: not what this program writes" for path in wrong) or f"{len(files)} files are as written")
    return 1 if wrong else 0


def write(files, where):
    for path, content in files.items():
        os.makedirs(os.path.dirname(os.path.join(where, path)), exist_ok=True)
        with open(os.path.join(where, path), "wb") as file:
            file.write(content)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(check(all_files()))
    if len(sys.argv) == 3 and sys.argv[1] == "--large":
        write(large_files(), sys.argv[2])
    elif len(sys.argv) == 1:
        write(all_files(), HERE)
    else:
        sys.exit(__doc__)
