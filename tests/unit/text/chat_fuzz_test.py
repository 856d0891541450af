#!/usr/bin/env python3
"""Every generated conversation renders, or fails, in `shoal render` exactly as in jinja2.

  chat_fuzz_test.py --shoal PROGRAM [--conversations 2000] [--seed N] [--venv FOLDER] TEMPLATE.jinja …

With --venv, jinja2 of the version that the recorded rows come from is put into a virtual environment there, once.
Each conversation goes through each template. The seed is printed; with it a run can be repeated. A
template's own words (raise_exception) must be the same, other failures must only be failures."""
import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile

JINJA = "jinja2==3.1.6"
ROLES = ["user", "assistant", "system", "tool", "developer", "ipython", "function", "User", ""]
TEXTS = ["Hi", "What is 2+2?", "", " ", "\n", "  lead and trail \n\n", "a\tb", "é ü ß 漢字 😀", "<|im_end|>", "</s>",
         "[INST] x [/INST]", "<think>why</think>\n\nso", "<think>\nopen", "</think>", "x</think>y</think>z",
         "{{ 7 * 7 }}", "{% raw %}", "{# c #}", "\"quoted\"", "it's", "back\\slash", "\u2028\u00a0\u200b", "a" * 300,
         "<resp>r</resp>", "<tool_response>\n1\n</tool_response>", "line1\nline2\n\nline4",
         "null", "0", "\x7f\x1f", "<b>&amp;</b>", "%s %d {}", "<｜end▁of▁sentence｜>", "```py\nprint(1)\n```"]
NAMES = ["get_weather", "f", "search web", "größe", "python", "a.b", "x\"y"]
WORDS = ["a", "b", "city", "unit", "größe", "items", "keys", "values", "get", "n", "type", "x y", "q\"t", "B", "0"]


def enter(venv):
    """Goes on in the virtual environment, which is made when it is not there."""
    python = os.path.join(venv, "bin", "python")
    stamp = os.path.join(venv, JINJA)
    if os.path.realpath(sys.prefix) == os.path.realpath(venv):
        return
    if not os.path.exists(stamp):
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", JINJA], check=True)
        with open(stamp, "w", encoding="utf-8"):
            pass
    os.execv(python, [python, *sys.argv])


def some(rng, options):
    return options[rng.randrange(len(options))]


def text(rng):
    return some(rng, TEXTS) if rng.random() < 0.7 else " ".join(some(rng, TEXTS) for _ in range(rng.randrange(4)))


def value(rng, depth=0):
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind < 3:
        return text(rng)
    if kind == 3:
        return rng.choice([0, 1, -1, 42, 2**53, -(10**12), 7])
    if kind == 4:
        return rng.choice([0.5, -1.25, 1e-7, 1e20, 3.0, 0.1, 1e16, 123456.789])
    if kind == 5:
        return rng.choice([True, False])
    if kind == 6:
        return None
    if kind == 7:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {some(rng, WORDS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def content(rng, plain):
    kind = 0 if plain else rng.random()
    if kind < 0.8:
        return text(rng)
    if kind < 0.9:
        parts = [{"type": "text", "text": text(rng)} for _ in range(rng.randrange(3))]
        return parts if rng.random() < 0.8 else [*parts, {"type": "image"}]
    return value(rng)


def tool_call(rng):
    arguments = {some(rng, WORDS): value(rng, 1) for _ in range(rng.randrange(4))}
    function = {"name": some(rng, NAMES), "arguments": arguments if rng.random() < 0.7 else json.dumps(arguments)}
    if rng.random() < 0.2:
        return function
    call = {"type": "function", "function": function}
    if rng.random() < 0.6:
        call["id"] = some(rng, ["call_1", "abcdefghi", "123456789", "x"])
    return call


def message(rng, role, plain):
    made = {"role": role, "content": content(rng, plain)}
    if not plain and rng.random() < 0.1:
        made.pop(rng.choice(["role", "content"]))
    if role == "assistant" and rng.random() < 0.35:
        made["tool_calls"] = [tool_call(rng) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
        if rng.random() < 0.4:
            made["content"] = "" if plain else None
    if role == "assistant" and rng.random() < 0.25:
        made[rng.choice(["reasoning_content", "thinking", "reasoning"])] = text(rng)
    if role in ("tool", "ipython") and rng.random() < 0.7:
        made[rng.choice(["name", "tool_call_id"])] = some(rng, NAMES + ["call_1", "abcdefghi"])
    if rng.random() < 0.05:
        made[some(rng, WORDS)] = value(rng)
    return made


def messages(rng):
    """Mostly what a client sends: perhaps a system turn, then turns that alternate; sometimes anything."""
    plain = rng.random() < 0.7
    if rng.random() < 0.15:
        return [message(rng, some(rng, ROLES), plain) for _ in range(rng.randrange(6))]
    made = [message(rng, rng.choice(["system", "system", "system", "developer"]), plain)] if rng.random() < 0.5 else []
    for _ in range(rng.randrange(4)):
        made.append(message(rng, "user", plain))
        made.append(message(rng, "assistant", plain))
        if made[-1].get("tool_calls"):
            made += [message(rng, "tool", plain) for _ in made[-1]["tool_calls"]]
            if rng.random() < 0.7:
                made.append(message(rng, "assistant", plain))
    if rng.random() < 0.8:
        made.append(message(rng, "user", plain))
    return made


def schema(rng, depth=0):
    kinds = ["string", "integer", "number", "boolean", "array", "object", ["string", "null"]]
    kind = rng.choice(kinds if depth < 2 else kinds[:2])
    made = {"type": kind}
    if rng.random() < 0.6:
        made["description"] = text(rng)
    if rng.random() < 0.15:
        made["enum"] = [some(rng, WORDS) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.1:
        made["default"] = value(rng, 2)
    if kind == "array" and rng.random() < 0.8:
        made["items"] = schema(rng, depth + 1)
    if kind == "object":
        made["properties"] = {some(rng, WORDS): schema(rng, depth + 1) for _ in range(rng.randrange(4))}
        if rng.random() < 0.6:
            made["required"] = [name for name in made["properties"] if rng.random() < 0.5]
    return made


def tool(rng):
    parameters = {"type": "object", "properties": {some(rng, WORDS): schema(rng, 1) for _ in range(rng.randrange(4))}}
    if rng.random() < 0.7:
        parameters["required"] = [name for name in parameters["properties"] if rng.random() < 0.6]
    function = {"name": some(rng, NAMES), "description": text(rng), "parameters": parameters}
    return {"type": "function", "function": function}


def conversation(rng):
    context = {"bos_token": rng.choice(["<s>", "<|begin_of_text|>", ""]), "eos_token": rng.choice(["</s>", "<|eot|>"]),
               "add_generation_prompt": rng.random() < 0.6}
    for name, values in (("enable_thinking", [True, False]), ("reasoning_effort", ["low", "high"]),
                         ("date_string", ["1 Jan 2025"]), ("custom_tools", [[]]), ("thinking", [True, False]),
                         ("builtin_tools", [["python", "code_interpreter"]]), ("model_identity", ["You are X."]),
                         ("tools_in_user_message", [False])):
        if rng.random() < 0.2:
            context[name] = rng.choice(values)
    if rng.random() < 0.1:
        context.pop(rng.choice(["bos_token", "eos_token"]))
    tools = [tool(rng) for _ in range(rng.randrange(4))] if rng.random() < 0.4 else None
    now = f"20{rng.randrange(10, 99)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T{rng.randrange(24):02}:05:09"
    return {"messages": messages(rng), "tools": tools, "context": context, "now": now}


def answers(program, template, rows):
    """What shoal says to each row."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        done = subprocess.run([program, "render", "--template", template, "--jsonl", path], capture_output=True,
                              text=True, check=False)
    lines = done.stdout.split("\n")[:-1]
    if len(lines) != len(rows):
        sys.exit(f"{template}: {len(lines)} answers to {len(rows)} rows, exit code {done.returncode}: "
                 f"{done.stderr[-500:]}")
    return [json.loads(line) for line in lines]


def is_equal(kind, wanted, got):
    if kind == "rendered":
        return got.get("rendered") == wanted
    if "error" not in got or not wanted.startswith("TemplateError: "):
        return "error" in got
    return got["error"] == wanted or (len(got["error"].encode()) > 490 and wanted.startswith(got["error"]))


def compare(program, path, rows, counts, shown_max=3):
    """Counts what is equal; returns how many rows differ."""
    import chat_oracle  # only here is jinja2 sure to be there
    with open(path, encoding="utf-8", newline="") as file:
        source = file.read()
    different = 0
    clock = chat_oracle.Clock()
    template = chat_oracle.environment(clock).from_string(source)
    for row, got in zip(rows, answers(program, path, rows)):
        clock.now = row["now"]
        kind, wanted = chat_oracle.render(template, row)
        counts[kind] += 1
        if is_equal(kind, wanted, got):
            continue
        different += 1
        if different <= shown_max:
            print(f"{path} differs\n  row    {json.dumps(row, ensure_ascii=False)}\n  wanted {wanted!r}\n"
                  f"  got    {got!r}")
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shoal", required=True)
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--venv")
    parser.add_argument("templates", nargs="+")
    args = parser.parse_args()
    if args.venv:
        enter(args.venv)
    rng = random.Random(args.seed)
    rows = [conversation(rng) for _ in range(args.conversations)]
    print(f"seed {args.seed}, {len(rows)} conversations, {len(args.templates)} templates")
    failed = 0
    for path in args.templates:
        counts = collections.Counter()
        different = compare(args.shoal, path, rows, counts)
        failed += different
        print(f"{os.path.basename(path)}: {len(rows) - different} of {len(rows)} equal "
              f"({counts['rendered']} rendered, {counts['error']} refused)", flush=True)
        if counts["rendered"] == 0:
            sys.exit("a template that renders nothing tests nothing")
    print(f"{len(rows) * len(args.templates) - failed} of {len(rows) * len(args.templates)} renderings are equal")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
