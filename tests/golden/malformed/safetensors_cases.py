"""The malformed safetensors files: (name, status, words of the error, content). A content is the file's bytes, or
a header and how many zero bytes follow it."""
import json


def _tensor(name, dtype, shape, offsets):
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def _one(dtype, shape, offsets):
    return "{" + _tensor("a", dtype, shape, offsets) + "}"


def _two(offsets_a, offsets_b, name_b="b", shape="[1]"):
    return "{" + _tensor("a", "U8", shape, offsets_a) + "," + _tensor(name_b, "U8", shape, offsets_b) + "}"


def _case(name, words, header, n_data=0, status="INVALID"):
    content = header if isinstance(header, bytes) else (header, n_data)
    return name + ".safetensors", status, words, content


def _index(name, words, text):
    return name + ".index.json", "INVALID", words, text.encode()


def _map(**shards):
    return json.dumps({"weight_map": {name: shard + ".safetensors" for name, shard in shards.items()}})


NOT_ALLOWED = "a name that is not allowed"

CASES = [
    _case("01-seven-bytes", "7 bytes; a safetensors file begins with 8", b"\1\0\0\0\0\0\0"),
    _case("02-length-0", "length is 0; it must be 2 to", bytes(8) + b"{}"),
    _case("03-length-2-63", "length is 9223372036854775808; it", bytes(7) + b"\x80{}"),
    _case("04-length-limit", "length is 100000001; it", b"\1\xe1\xf5\5\0\0\0\0{}"),
    _case("05-length-past", "is 3, but only 2 bytes follow", b"\3\0\0\0\0\0\0\0{}"),
    _case("06-not-utf8", "is not JSON: line 1", '{"\xff":1}'),
    _case("07-no-brace", "does not begin with {", "[]"),
    _case("07b-space-first", "does not begin with {", " {}"),
    _case("08-garbage", "is not JSON", "{} x"),
    _case("08b-two-documents", "is not JSON", "{}{}"),
    _case("09-tensor-twice", "duplicate", _two("[0,1]", "[1,2]", "a"), 2),
    _case("09b-member-twice", "duplicate", '{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', 1),
    _case("10-begin-above-end", "begins at 2 and ends before, at 1", _one("U8", "[1]", "[2,1]"), 2),
    _case("11-end-past", "ends at 3, but the file has 2", _one("U8", "[3]", "[0,3]"), 2),
    _case("12-hole", "tensor b: its data begins at 2 and leaves a hole", _two("[0,1]", "[2,3]"), 3),
    _case("12b-hole-first", "leaves a hole", _one("U8", "[1]", "[1,2]"), 2),
    _case("13-overlap", "tensor b: its data begins at 1 and overlaps the one before, which ends at 2",
          _two("[0,2]", "[1,3]", shape="[2]"), 3),
    _case("13b-same-bytes", "overlaps", _two("[0,2]", "[0,2]", shape="[2]"), 2),
    _case("14-bytes-behind", "3 bytes behind the last tensor", _one("U8", "[2]", "[0,2]"), 5),
    _case("14b-no-tensor", "1 bytes behind the last tensor", "{}", 1),
    _case("15-length", "its data has 4 bytes, its shape as F32 takes 8", _one("F32", "[2]", "[0,4]"), 4),
    _case("16-product", "shape in bytes overflows", _one("F32", "[4294967296,4294967296]", "[0,0]")),
    _case("16b-bytes", "shape in bytes overflows", _one("F64", "[2305843009213693952]", "[0,0]")),
    # Right in the format, however long its other sides, and no part of any model.
    _case("16c-empty", "tensor a is empty", _one("F32", "[0,9223372036854775807,9223372036854775807]", "[0,0]")),
    _case("17-offset-negative", "data_offsets[0] is -1; it must", _one("U8", "[1]", "[-1,0]"), 1),
    _case("17b-offset-fraction", "data_offsets[1] is of kind number", _one("U8", "[1]", "[0,1.5]"), 1),
    _case("17c-offset-1e3", "data_offsets[1] is of kind number", _one("U8", "[1]", "[0,1e3]"), 1),
    _case("17d-offset-text", "data_offsets[1] is of kind string", _one("U8", "[1]", '[0,"1"]'), 1),
    _case("17e-offset-2-64", "is not JSON", _one("U8", "[1]", "[0,18446744073709551616]"), 1),
    _case("17f-three-offsets", "has 3 values; it must be [begin", _one("U8", "[1]", "[0,1,1]"), 1),
    _case("17g-side-negative", "shape[0] is -1; it must", _one("U8", "[-1]", "[0,1]"), 1),
    _case("17h-nine-sides", "has 9 dimensions", _one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1),
    _case("18-dtype", 'dtype "F4" is none of the format\'s', _one("F4", "[1]", "[0,1]"), 1),
    _case("18b-dtype-number", '"dtype" is of kind integer', '{"a":{"dtype":3,"shape":[1],"data_offsets":[0,1]}}', 1),
    _case("18c-no-shape", 'has no "shape"', '{"a":{"dtype":"U8","data_offsets":[0,1]}}', 1),
    _case("18d-further-member", "further keys", '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}', 1),
    _case("18e-array", "tensor a is of kind array", '{"a":[]}'),
    _case("18f-no-name", "0 bytes; it must have 1 to", "{" + _tensor("", "U8", "[1]", "[0,1]") + "}", 1),
    _case("18g-control", "a control character", "{" + _tensor("a\\n", "U8", "[1]", "[0,1]") + "}", 1),
    _case("19-metadata", '__metadata__: "format" is of kind integer; all of it must be strings',
          '{"__metadata__":{"format":1}}'),
    _case("19b-metadata-text", "__metadata__ is of kind string", '{"__metadata__":"pt"}'),
    _index("22-shard-missing", "names the shard s9.safetensors, which is", _map(a="s9")),
    _index("22b-shard-absolute", NOT_ALLOWED, _map(a="/etc/model")),
    _index("22c-shard-up", NOT_ALLOWED, _map(a="../s1")),
    _index("22d-shard-folder", NOT_ALLOWED, _map(a="sub/s1")),
    _index("22e-shard-no-name", NOT_ALLOWED, _map(a="")),
    _index("22f-shard-other-ending", NOT_ALLOWED, '{"weight_map":{"a":"config.json"}}'),
    _index("22g-shard-newline", NOT_ALLOWED, _map(a="s1\n")),
    _index("22h-shard-nul", "contains a NUL", _map(a="s1\0")),
    _index("22i-shard-number", '"a" is of kind integer', '{"weight_map":{"a":7}}'),
    _index("22j-map-array", '"weight_map" is of kind array', '{"weight_map":[]}'),
    _index("22k-no-map", 'has no "weight_map"', "{}"),
    _index("22l-tensor-twice", "duplicate", '{"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}}'),
    _index("22m-tensor-missing", "tensor x is not in s1.safetensors", _map(x="s1")),
    _index("22n-tensor-elsewhere", "tensor c is not in s1.safetensors but in s2.safetensors", _map(c="s1", a="s2")),
    _index("22o-no-tensors", "the model has no tensors", _map()),
    _index("23-in-two-shards", "tensor b is in two shards, s1.safetensors and s3.saf", _map(a="s1", c="s3")),
    _case("24-pickle", "this is a pickle", b"\x80\2ctorch\nload\n"),
    _case("24b-zip", "this is a zip archive", b"PK\3\4" + bytes(8)),
    _case("right", "", _one("F32", "[2]", "[0,8]"), 8, "OK"),
]

# What the index files speak of.
SHARDS = {
    "s1.safetensors": ("{" + _tensor("a", "F32", "[1]", "[0,4]") + "," + _tensor("b", "F32", "[1]", "[4,8]") + "}", 8),
    "s2.safetensors": ("{" + _tensor("c", "F32", "[1]", "[0,4]") + "}", 4),
    "s3.safetensors": ("{" + _tensor("c", "F32", "[1]", "[0,4]") + "," + _tensor("b", "F32", "[1]", "[4,8]") + "}", 8),
}


def _million_tensors():
    tensors = ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(1000000))
    return "{" + tensors + "}", 0


LARGE = [
    ("20-million-tensors.safetensors", "INVALID", "values; such a document has at most", _million_tensors),
    ("21-nesting.safetensors", "INVALID", "is nested deeper than 4 levels", lambda: ('{"a":' + "[" * 100000, 0)),
]
