"""Tokenizers for the differential test: those of published models, built from package files, and small ones trained
on the spot so that every step that shoal knows is met by Hugging Face's own."""
import base64
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.normpath(os.path.join(HERE, "../../golden/tokenizers"))
WORDS = ('the of and to in is you that it he was for on are as with his they at be this have from or one had '
         'by word but not what all were we when your can said there use an each which she do how their if will '
         'up other about out many then them naïve café Straße größer Übung Ελλάδα λόγος Москва привет мир שלום '
         "سلام 東京 日本語 中文字 漢字 한국어 안녕 नमस्ते ไทย tokenizer tokenization detokenize 2024 3.14159 1,000,000 don't "
         'we\'ll I\'m they\'ve x=y+z; foo_bar() <html> {json} "q" '
         'ﬁne ﬂow ½ ² Ⅷ ㎏ １２３ ＡＢＣ ｶﾞ ﷺ Å Å é é 😀 👩\u200d👩\u200d👧 🇩🇪 ').split()


def corpus():
    """A few thousand lines, the same every time: the trained vocabularies must not change."""
    rng = random.Random(7)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 14))) for _ in range(4000)]


def trained(directory):
    """Writes the small tokenizers; returns their names."""
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                            trainers)
    n, p, d = normalizers, pre_tokenizers, decoders
    lines = corpus()
    alphabet = p.ByteLevel.alphabet()
    bytes_256 = [f"<0x{b:02X}>" for b in range(256)]
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    tail = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    gpt4o = (rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{tail}[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{tail}"
             r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    added = [AddedToken("<left>", lstrip=True, special=True), AddedToken("<right>", rstrip=True),
             AddedToken("<both>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True),
             AddedToken("Café", normalized=True), AddedToken("<raw>", normalized=False),
             AddedToken("<|x|>", special=True), AddedToken("<|x|><|y|>", special=True),
             AddedToken("ab", single_word=True, lstrip=True, rstrip=True)]

    def bpe(trainer_args, **model):
        tokenizer = Tokenizer(models.BPE(**model))
        return tokenizer, trainers.BpeTrainer(vocab_size=900, show_progress=False, **trainer_args)

    made = {}

    def finish(name, tokenizer, trainer, decoder, **after):
        tokenizer.train_from_iterator(lines, trainer)
        if decoder is not None:
            tokenizer.decoder = decoder
        for key, value in after.items():
            setattr(tokenizer, key, value)
        tokenizer.add_tokens([t for t in added if not t.special])
        tokenizer.add_special_tokens([t for t in added if t.special])
        path = os.path.join(directory, name)
        os.makedirs(path, exist_ok=True)
        tokenizer.save(os.path.join(path, "tokenizer.json"))
        made[name] = path

    spm_decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    # Byte-level, in the forms that differ.
    t, tr = bpe({"initial_alphabet": alphabet, "special_tokens": ["<s>", "</s>"]})
    t.pre_tokenizer = p.Sequence([p.Split(Regex(gpt4o), "isolated"),
                                  p.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.normalizer = n.NFC()
    finish("bytes-gpt4o", t, tr, d.ByteLevel())
    t, tr = bpe({"initial_alphabet": alphabet})
    t.normalizer = n.Sequence([n.NFD(), n.StripAccents(), n.Strip()])
    t.pre_tokenizer = p.Sequence([p.Digits(False), p.Punctuation("merged_with_previous"),
                                  p.ByteLevel(add_prefix_space=True)])
    finish("bytes-prefix", t, tr, d.Sequence([d.ByteLevel()]),
           post_processor=processors.RobertaProcessing(("<|x|>", 1), ("<|x|>", 1)))
    t, tr = bpe({"initial_alphabet": alphabet}, ignore_merges=True)
    t.normalizer = n.NFKC()
    t.pre_tokenizer = p.Sequence([p.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
                                  p.Split(Regex(r"\p{N}{1,3}"), "merged_with_next"),
                                  p.Split(Regex(r"\w+|[^\w\s]+"), "contiguous", True),
                                  p.ByteLevel(add_prefix_space=False)])
    finish("bytes-mixed", t, tr, d.ByteLevel())
    # SentencePiece-like.
    t, tr = bpe({"special_tokens": ["<unk>", "<s>", *bytes_256], "limit_alphabet": 120}, unk_token="<unk>",
                byte_fallback=True, fuse_unk=True)
    t.normalizer = n.Sequence([n.Prepend("▁"), n.Replace(" ", "▁")])
    finish("spm-legacy", t, tr, spm_decoder)
    t, tr = bpe({"special_tokens": ["<unk>", *bytes_256], "limit_alphabet": 120}, unk_token="<unk>", byte_fallback=True)
    t.pre_tokenizer = p.Metaspace(prepend_scheme="first", split=False)
    finish("spm-first", t, tr, spm_decoder)
    t, tr = bpe({"special_tokens": ["<unk>"], "limit_alphabet": 90}, unk_token="<unk>", fuse_unk=True)
    t.normalizer = n.Sequence([n.NFKD(), n.Lowercase(), n.Replace(Regex(r"\s+"), " ")])
    t.pre_tokenizer = p.Metaspace(prepend_scheme="always")
    finish("bpe-fused", t, tr, d.Metaspace())
    t, tr = bpe({"special_tokens": ["<unk>"], "limit_alphabet": 90}, unk_token="<unk>")
    t.pre_tokenizer = p.Sequence([p.WhitespaceSplit(), p.Punctuation(), p.Digits(True)])
    finish("bpe-unknown", t, tr, None)
    affixes = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
    t, tr = bpe({"special_tokens": ["<unk>"], **affixes}, unk_token="<unk>", **affixes)
    t.pre_tokenizer = p.Whitespace()
    finish("bpe-affixes", t, tr, None)
    # Unigram and WordPiece.
    t = Tokenizer(models.Unigram())
    tr = trainers.UnigramTrainer(vocab_size=700, special_tokens=["<unk>", "<s>"], unk_token="<unk>",
                                 show_progress=False)
    t.normalizer = n.Sequence([n.Nmt(), n.NFKC(), n.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = p.Metaspace(prepend_scheme="first")
    finish("unigram", t, tr, d.Metaspace(prepend_scheme="first"),
           post_processor=processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 1)]))
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tr = trainers.WordPieceTrainer(vocab_size=800, special_tokens=["[UNK]"], show_progress=False)
    t.normalizer, t.pre_tokenizer = n.BertNormalizer(), p.BertPreTokenizer()
    finish("wordpiece", t, tr, d.WordPiece())
    return made


def sentencepiece_unigram(directory):
    """A unigram with a precompiled character map, trained by SentencePiece itself: tokenizer.json of it."""
    import sentencepiece
    path = os.path.join(directory, "unigram-spm")
    os.makedirs(path, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as text:
        text.write("\n".join(corpus()))
        text.flush()
        sentencepiece.SentencePieceTrainer.train(
            input=text.name, model_prefix=os.path.join(path, "spm"), vocab_size=460, model_type="unigram",
            byte_fallback=True, minloglevel=2, num_threads=1, hard_vocab_limit=False, character_coverage=0.98)
    with open(os.path.join(path, "spm.model"), "rb") as file:
        charsmap = precompiled_charsmap(file.read())
    model = sentencepiece.SentencePieceProcessor(model_file=os.path.join(path, "spm.model"))
    size = model.vocab_size()
    vocabulary = [[model.id_to_piece(i), model.get_score(i)] for i in range(size)]
    special = [i for i in range(size) if model.is_control(i) or model.is_unknown(i)]
    document = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": vocabulary[i][0], "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True} for i in special],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}]},
        "model": {"type": "Unigram", "unk_id": model.unk_id(), "vocab": vocabulary, "byte_fallback": True}}
    with open(os.path.join(path, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(document, file)
    return path


def fields(data):
    """The fields of one serialized protobuf message: (number, value) with bytes for nested ones."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            size = varint()
            yield key >> 3, data[at:at + size]
            at += size
        else:
            size = 8 if key & 7 == 1 else 4
            yield key >> 3, data[at:at + size]
            at += size


def precompiled_charsmap(model):
    """normalizer_spec (3) . precompiled_charsmap (2) of a SentencePiece model file."""
    spec = [value for number, value in fields(model) if number == 3][0]
    return [value for number, value in fields(spec) if number == 2][0]


# --- GGUF -------------------------------------------------------------------------------------------

def gguf_text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_array(kind, values):
    if kind == 8:
        body = b"".join(gguf_text(v) for v in values)
    else:
        body = struct.pack(f"<{len(values)}{'if'[kind == 6]}", *values)
    return struct.pack("<IQ", kind, len(values)) + body


def write_gguf(path, keys):
    """A GGUF file with keys alone; each value is (kind, value), arrays (9, (element kind, values))."""
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)))
        for name, (kind, value) in keys.items():
            file.write(gguf_text(name) + struct.pack("<I", kind))
            if kind == 8:
                file.write(gguf_text(value))
            elif kind == 9:
                file.write(gguf_array(*value))
            else:
                file.write(struct.pack({4: "<I", 7: "<?"}[kind], value))


def gguf_of_json(directory, path, pre):
    """The GGUF of a byte-level tokenizer.json, as the usual converters write it."""
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as file:
        document = json.load(file)
    texts = {i: t for t, i in document["model"]["vocab"].items()}
    kinds = {i: 1 for i in texts}
    for token in document["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = 3 if token["special"] else 4
    size = max(texts) + 1
    merges = [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]]
    write_gguf(path, {
        "tokenizer.ggml.model": (8, "gpt2"), "tokenizer.ggml.pre": (8, pre),
        "tokenizer.ggml.tokens": (9, (8, [texts.get(i, f"[PAD{i}]") for i in range(size)])),
        "tokenizer.ggml.token_type": (9, (5, [kinds.get(i, 5) for i in range(size)])),
        "tokenizer.ggml.merges": (9, (8, merges))})


def gguf_of_sentencepiece(model_path, path, name, charsmap=None, prefix=True):
    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(model_file=model_path)
    ids = range(model.vocab_size())
    kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids]
    keys = {
        "tokenizer.ggml.model": (8, name), "tokenizer.ggml.add_space_prefix": (7, prefix),
        "tokenizer.ggml.tokens": (9, (8, [model.id_to_piece(i) for i in ids])),
        "tokenizer.ggml.scores": (9, (6, [model.get_score(i) for i in ids])),
        "tokenizer.ggml.token_type": (9, (5, kinds)), "tokenizer.ggml.unknown_token_id": (4, model.unk_id()),
        "tokenizer.ggml.bos_token_id": (4, model.bos_id()), "tokenizer.ggml.eos_token_id": (4, model.eos_id())}
    if charsmap is not None:
        keys["tokenizer.ggml.precompiled_charsmap"] = (9, (5, list(charsmap)))
        keys["tokenizer.ggml.remove_extra_whitespaces"] = (7, True)
    write_gguf(path, keys)


def published(directory):
    """deepseek-v4, qwen2 and mistral-v1-spm from their packages' files, smollm2 from the tree."""
    built = {name: os.path.join(directory, name) for name in ("deepseek-v4", "qwen2", "mistral-v1-spm")}
    if not all(os.path.exists(os.path.join(path, "tokenizer.json")) for path in built.values()):
        subprocess.run([sys.executable, os.path.join(GOLDEN, "tools/get_tokenizers.py"), directory], check=True)
    return {"smollm2": os.path.join(GOLDEN, "smollm2"), **built}
