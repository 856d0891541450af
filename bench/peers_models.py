"""Makes the models that bench/peers compares on, with numpy of its virtual environment:

    peers_models.py llama OUT.gguf           a Llama-shaped model of 1.1 B random weights, BF16
    peers_models.py ctranslate2 IN.gguf OUT  a directory for CTranslate2 in int8, from a GGUF of F32 or BF16

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The random weights are small and
alike in every layer (one block of values, used again and again): no program here looks at values
when it decides how fast to be, and quantizing them gives blocks as full as real ones do."""
import os
import struct
import sys

import numpy

ALIGNMENT = 32
F32, BF16 = 0, 30
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
SHAPE = {"hidden": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "ffn": 8192, "vocab": 32000}


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value_of(kind, value):
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(value_of(inner, item) for item in items)
    return struct.pack({UINT32: "<I", FLOAT32: "<f", BOOL: "<?", INT32: "<i"}[kind], value)


def vocabulary(n):
    """Pieces of a sentence-piece vocabulary: specials, all bytes, then words that never meet."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    pieces += [f"▁w{i}" for i in range(len(pieces), n)]
    kinds += [1] * (n - len(kinds))
    return pieces, kinds


def metadata():
    pieces, kinds = vocabulary(SHAPE["vocab"])
    yield "general.architecture", STRING, "llama"
    yield "general.name", STRING, "llama-shaped, random weights"
    yield "general.alignment", UINT32, ALIGNMENT
    yield "llama.context_length", UINT32, 8192
    yield "llama.embedding_length", UINT32, SHAPE["hidden"]
    yield "llama.block_count", UINT32, SHAPE["layers"]
    yield "llama.feed_forward_length", UINT32, SHAPE["ffn"]
    yield "llama.attention.head_count", UINT32, SHAPE["heads"]
    yield "llama.attention.head_count_kv", UINT32, SHAPE["kv_heads"]
    yield "llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5
    yield "llama.rope.dimension_count", UINT32, SHAPE["hidden"] // SHAPE["heads"]
    yield "llama.rope.freq_base", FLOAT32, 10000.0
    yield "llama.vocab_size", UINT32, SHAPE["vocab"]
    yield "tokenizer.ggml.model", STRING, "llama"
    yield "tokenizer.ggml.tokens", ARRAY, (STRING, pieces)
    yield "tokenizer.ggml.scores", ARRAY, (FLOAT32, [-float(i) for i in range(len(pieces))])
    yield "tokenizer.ggml.token_type", ARRAY, (INT32, kinds)
    yield "tokenizer.ggml.bos_token_id", UINT32, 1
    yield "tokenizer.ggml.eos_token_id", UINT32, 2
    yield "tokenizer.ggml.unknown_token_id", UINT32, 0


def tensors():
    """(name, rows, columns); vectors have 0 rows."""
    hidden, ffn = SHAPE["hidden"], SHAPE["ffn"]
    kv = hidden // SHAPE["heads"] * SHAPE["kv_heads"]
    yield "token_embd.weight", SHAPE["vocab"], hidden
    for layer in range(SHAPE["layers"]):
        at = f"blk.{layer}."
        yield at + "attn_norm.weight", 0, hidden
        yield at + "attn_q.weight", hidden, hidden
        yield at + "attn_k.weight", kv, hidden
        yield at + "attn_v.weight", kv, hidden
        yield at + "attn_output.weight", hidden, hidden
        yield at + "ffn_norm.weight", 0, hidden
        yield at + "ffn_gate.weight", ffn, hidden
        yield at + "ffn_up.weight", ffn, hidden
        yield at + "ffn_down.weight", hidden, ffn
    yield "output_norm.weight", 0, hidden
    yield "output.weight", SHAPE["vocab"], hidden


def write_llama(path):
    random = numpy.random.default_rng(1).standard_normal(4 << 20, dtype=numpy.float32) * 0.02
    block = (random.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()
    pairs, header, at = list(metadata()), b"", 0
    for name, rows, columns in tensors():
        kind, n_bytes = (BF16, 2 * rows * columns) if rows else (F32, 4 * columns)
        sides = [columns, rows] if rows else [columns]
        header += text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, at)
        at += n_bytes + -n_bytes % ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(list(tensors())), len(pairs))
    for name, kind, value in pairs:
        head += text(name) + struct.pack("<I", kind) + value_of(kind, value)
    head += header
    with open(path + ".part", "wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGNMENT))
        for _, rows, columns in tensors():
            if rows == 0:
                file.write(numpy.ones(columns, dtype=numpy.float32).tobytes())
                continue
            left = 2 * rows * columns
            while left > 0:
                file.write(block[:left])
                left -= len(block)
    os.rename(path + ".part", path)


class Gguf:
    """Reads metadata and the F32 or BF16 tensors of a file that llama.cpp or the above has written."""

    SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

    def __init__(self, path):
        self.data = numpy.memmap(path, dtype=numpy.uint8, mode="r")
        self.at = 4
        _, n_tensors, n_pairs = self.unpack("<IQQ")
        self.pairs = {}
        for _ in range(n_pairs):
            name = self.text()
            self.pairs[name] = self.value(self.unpack("<I")[0])
        self.tensors = {}
        for _ in range(n_tensors):
            name, n_sides = self.text(), self.unpack("<I")[0]
            self.tensors[name] = (self.unpack(f"<{n_sides}Q"), *self.unpack("<IQ"))
        alignment = self.pairs.get("general.alignment", ALIGNMENT)
        self.base = self.at + -self.at % alignment

    def unpack(self, form):
        size = struct.calcsize(form)
        values = struct.unpack(form, self.data[self.at:self.at + size].tobytes())
        self.at += size
        return values

    def text(self):
        size = self.unpack("<Q")[0]
        self.at += size
        return self.data[self.at - size:self.at].tobytes().decode()

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, n = self.unpack("<IQ")
            return [self.value(inner) for _ in range(n)]
        return self.unpack(self.SCALARS[kind])[0]

    def tensor(self, name):
        sides, kind, offset = self.tensors[name]
        count, begin = int(numpy.prod(sides)), self.base + offset
        if kind == F32:
            values = self.data[begin:begin + 4 * count].view(numpy.float32).copy()
        elif kind == BF16:
            halves = self.data[begin:begin + 2 * count].view(numpy.uint16)
            values = (halves.astype(numpy.uint32) << 16).view(numpy.float32)
        else:
            raise SystemExit(f"peers_models: tensor {name} has type {kind}; F32 (0) or BF16 (30) would be right")
        return values.reshape(sides[::-1])


def write_ctranslate2(source, out):
    import ctranslate2
    gguf = Gguf(source)
    get = lambda key: gguf.pairs["llama." + key]
    spec = ctranslate2.specs.TransformerDecoderModelSpec.from_config(
        get("block_count"), get("attention.head_count"), activation=ctranslate2.specs.Activation.SWISH, pre_norm=True,
        ffn_glu=True, rms_norm=True, rotary_dim=0, rotary_interleave=True, rotary_base=get("rope.freq_base"),
        num_heads_kv=get("attention.head_count_kv"))
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = gguf.tensor("token_embd.weight")
    decoder.layer_norm.gamma = gguf.tensor("output_norm.weight")
    decoder.projection.weight = gguf.tensor("output.weight" if "output.weight" in gguf.tensors else "token_embd.weight")
    for i, layer in enumerate(decoder.layer):
        of = lambda name: gguf.tensor(f"blk.{i}.{name}.weight")
        layer.self_attention.layer_norm.gamma = of("attn_norm")
        layer.self_attention.linear[0].weight = numpy.concatenate([of("attn_q"), of("attn_k"), of("attn_v")])
        layer.self_attention.linear[1].weight = of("attn_output")
        layer.ffn.layer_norm.gamma = of("ffn_norm")
        layer.ffn.linear_0.weight = of("ffn_gate")
        layer.ffn.linear_0_noact.weight = of("ffn_up")
        layer.ffn.linear_1.weight = of("ffn_down")
    # The words do not matter, only that there is one for each id and that none stands twice.
    spec.register_vocabulary([f"t{i}" for i in range(decoder.embeddings.weight.shape[0])])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "t1", "t2", "t0"
    spec.config.layer_norm_epsilon = get("attention.layer_norm_rms_epsilon")
    spec.validate()
    spec.optimize(quantization="int8")
    os.makedirs(out, exist_ok=True)
    spec.save(out)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "llama":
        write_llama(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[1] == "ctranslate2":
        write_ctranslate2(sys.argv[2], sys.argv[3])
    else:
        raise SystemExit(__doc__)
