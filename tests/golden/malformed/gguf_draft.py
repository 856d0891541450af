"""Writes small GGUF files, right ones and ones that are wrong in one place: a list of keys and tensors
that a case changes before it is turned into bytes."""
import struct

U32, I32, F32, BOOL, TEXT, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_I8, TYPE_I64 = 0, 1, 2, 24, 27


def u32(value):
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value):
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def text(value):
    return u64(len(value)) + value.encode()


class Tensor:
    def __init__(self, name, kind, columns, rows):
        self.name, self.kind = name.encode(), kind
        self.dims = [columns] if rows == 1 else [columns, rows]
        self.n_dims = self.name_size = self.offset = self.data_bytes = None  # None: as they are

    def n_bytes(self):
        if self.data_bytes is not None:
            return self.data_bytes
        n = 1
        for side in self.dims:
            n *= side
        return n // 32 * 18 if self.kind == TYPE_Q4_0 else n * 4 if self.kind == TYPE_F32 else n

    def data(self):
        if self.kind == TYPE_F32:
            return struct.pack("<f", 1) * (self.n_bytes() // 4)
        return bytes(i * 7 % 0x3C for i in range(self.n_bytes()))


class Key:
    def __init__(self, name, kind, payload):
        self.name, self.kind, self.payload, self.name_size = name.encode(), kind, payload, None


class Gguf:
    """A whole llama unless a case changes it: one layer, hidden 32, 2 heads of 16 on 1, 8 tokens."""

    def __init__(self):
        self.magic, self.version, self.alignment = b"GGUF", 3, 32
        self.n_tensors = self.n_keys = None
        self.keys, self.tensors = [], []
        self.set_text("general.architecture", "llama")
        for name, value in (("block_count", 1), ("context_length", 128), ("embedding_length", 32),
                            ("feed_forward_length", 32), ("attention.head_count", 2),
                            ("attention.head_count_kv", 1), ("rope.dimension_count", 16), ("vocab_size", 8)):
            self.set_u32("llama." + name, value)
        self.set_f32("llama.rope.freq_base", 10000)
        self.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        self.set_text("tokenizer.ggml.model", "gpt2")
        self.set_texts("tokenizer.ggml.tokens", 8)
        self.set_i32s("tokenizer.ggml.token_type", 8, 1)
        self.set_u32("tokenizer.ggml.bos_token_id", 1)
        self.set_u32("tokenizer.ggml.eos_token_id", 2)
        self.set("tokenizer.ggml.add_bos_token", BOOL, b"\0")
        for name, kind, columns, rows in (
                ("token_embd", TYPE_Q4_0, 32, 8), ("blk.0.attn_norm", TYPE_F32, 32, 1),
                ("blk.0.attn_q", TYPE_Q4_0, 32, 32), ("blk.0.attn_k", TYPE_Q4_0, 32, 16),
                ("blk.0.attn_v", TYPE_Q4_0, 32, 16), ("blk.0.attn_output", TYPE_Q4_0, 32, 32),
                ("blk.0.ffn_norm", TYPE_F32, 32, 1), ("blk.0.ffn_gate", TYPE_Q4_0, 32, 32),
                ("blk.0.ffn_up", TYPE_Q4_0, 32, 32), ("blk.0.ffn_down", TYPE_Q4_0, 32, 32),
                ("output_norm", TYPE_F32, 32, 1)):
            self.add_tensor(name + ".weight", kind, columns, rows)

    def key(self, name):
        return next(key for key in self.keys if key.name == name.encode())

    def add_key(self, name, kind, payload):
        self.keys.append(Key(name, kind, payload))

    def remove_key(self, name):
        self.keys.remove(self.key(name))

    def set(self, name, kind, payload):
        for key in self.keys:
            if key.name == name.encode():
                key.kind, key.payload = kind, payload
                return
        self.add_key(name, kind, payload)

    def set_u32(self, name, value):
        self.set(name, U32, u32(value))

    def set_i32(self, name, value):
        self.set(name, I32, u32(value))

    def set_f32(self, name, value):
        self.set(name, F32, struct.pack("<f", value))

    def set_text(self, name, value):
        self.set(name, TEXT, text(value))

    def set_texts(self, name, n):
        self.set(name, ARRAY, u32(TEXT) + u64(n) + b"".join(text(f"t{i}") for i in range(n)))

    def set_i32s(self, name, n, value):
        self.set(name, ARRAY, u32(I32) + u64(n) + u32(value) * n)

    def set_array_head(self, name, element, n):
        self.set(name, ARRAY, u32(element) + u64(n))

    def tensor(self, name):
        return next(tensor for tensor in self.tensors if tensor.name == name.encode())

    def add_tensor(self, name, kind, columns, rows):
        self.tensors.append(Tensor(name, kind, columns, rows))

    def write(self):
        out = self.magic + u32(self.version)
        out += u64(len(self.tensors) if self.n_tensors is None else self.n_tensors)
        out += u64(len(self.keys) if self.n_keys is None else self.n_keys)
        for key in self.keys:
            size = len(key.name) if key.name_size is None else key.name_size
            out += u64(size) + key.name + u32(key.kind) + key.payload
        offset = 0
        for tensor in self.tensors:
            out += u64(len(tensor.name) if tensor.name_size is None else tensor.name_size) + tensor.name
            n_dims = len(tensor.dims) if tensor.n_dims is None else tensor.n_dims
            out += u32(n_dims) + b"".join(u64(side) for side in (tensor.dims + [1] * 8)[:min(n_dims, 8)])
            out += u32(tensor.kind) + u64(offset if tensor.offset is None else tensor.offset)
            offset += -(-tensor.n_bytes() // self.alignment) * self.alignment
        # No padding follows the last tensor, so that every cut loses something.
        for tensor in self.tensors:
            out += b"\0" * (-len(out) % self.alignment) + tensor.data()
        return out
