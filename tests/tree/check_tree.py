#!/usr/bin/env python3
"""Laws of the source tree that no compiler checks.

  check_tree.py ROOT                      includes point only downwards; no path of one machine; no
                                          word that marks unfinished work
  check_tree.py ROOT --headers -- CC ...  every public header compiles alone with that command
  check_tree.py --self-test               plants each kind of defect and expects it to be found

The include law is the table of docs/design.md, section 2. Exits with 1 and a line per defect."""
import os
import re
import subprocess
import sys
import tempfile

# A room and what it may include besides itself. The longest matching prefix of a path is its room.
ROOMS = {
    "common/base": [],
    "common/net": ["common/base", "proto"],
    "common/model": ["common/base"],
    "kernels": ["common/base"],
    "worker": ["kernels", "common/base", "common/net", "common/model", "proto"],
    "coordinator": ["common/base", "common/net", "common/model", "proto"],
    "cli": ["common/base", "common/net", "common/model", "proto"],
    "proto": [],
}
# Headers that hold a piece of another file, or need one instruction set's flags, are not public.
NOT_PUBLIC = re.compile(r"\.inc\.h$|^kernels/cpu/|^kernels/cuda/")
SKIPPED_DIRS = {".git", ".cache", "build", "third_party", "__pycache__"}
SOURCE = re.compile(r"\.(c|h|cc|cu|lua|py|sh|proto|cmake|md|txt|json|yaml|yml)$")
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.M)
# Spelt in pieces, so that this file does not find itself.
WORDS = ["TO" + "DO", "FIX" + "ME", "HA" + "CK", "XX" + "X", "place" + "holder", "stu" + "b",
         "for " + "now", "not imple" + "mented"]
UNFINISHED = re.compile(r"\b(" + "|".join(WORDS[:4]) + r")\b|"
                        r"(?i:\b(" + "|".join(WORDS[4:]) + r")\b)")
MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:work|root|home|Users|mnt|workspace)/[\w.-]+")


def files_of(root):
    for folder, dirs, names in os.walk(root):
        dirs[:] = sorted(d for d in dirs if d not in SKIPPED_DIRS)
        for name in sorted(names):
            full = os.path.join(folder, name)
            if os.path.isfile(full) and not os.path.islink(full):
                yield os.path.relpath(full, root)


def is_text(root, path):
    """Sources by their ending; programs without one by their first two bytes."""
    if path.startswith("tests/golden/"):
        return False
    if SOURCE.search(path):
        return True
    with open(os.path.join(root, path), "rb") as file:
        return file.read(2) == b"#!"


def room_of(path):
    found = [room for room in ROOMS if path == room or path.startswith(room + "/")]
    return max(found, key=len) if found else None


def target_of(path, included):
    """The room that an include reaches; None for system headers and libraries."""
    if included.endswith(".pb-c.h") or included.startswith(("shoal/", "etcd/", "grpc/health")):
        return "proto"
    beside = os.path.normpath(os.path.join(os.path.dirname(path), included))
    return room_of(included) or room_of(beside)


def check_includes(root, path, text):
    room = room_of(path)
    if room is None or not re.search(r"\.(c|h|cu)$", path):
        return
    for match in INCLUDE.finditer(text):
        quoted = match.group(0).rstrip().endswith('"')
        target = target_of(path, match.group(1)) if quoted else room_of(match.group(1))
        if target is None or target == room or target in ROOMS[room]:
            continue
        line = text.count("\n", 0, match.start(1)) + 1
        allowed = ", ".join(ROOMS[room]) or "nothing else"
        yield f"{path}:{line}: {room}/ includes {match.group(1)}; it may include {allowed}"


def check_words(root, path, text):
    for number, line in enumerate(text.splitlines(), 1):
        if MACHINE_PATH.search(line):
            yield f"{path}:{number}: a path of one machine: {MACHINE_PATH.search(line).group(0)}"
        found = UNFINISHED.search(line)
        # Python's gRPC clients are called so by their own library.
        if found and not (path.endswith(".py") and found.group(0) == WORDS[5]):
            yield f"{path}:{number}: marks unfinished work: {found.group(0)}"


def check_tree(root):
    for path in files_of(root):
        if re.search(r"(\.(orig|rej|bak)|~)$", path):
            yield f"{path}: left over from an edit"
        if not is_text(root, path):
            continue
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            text = file.read()
        yield from check_includes(root, path, text)
        yield from check_words(root, path, text)


def check_headers(root, command):
    """All headers of a room in one compiler run would hide what one takes from another."""
    for path in files_of(root):
        if not path.endswith(".h") or room_of(path) is None or NOT_PUBLIC.search(path):
            continue
        run = subprocess.run(command + ["-fsyntax-only", "-x", "c", "-"], cwd=root, text=True,
                             input=f'#include "{path}"\n', capture_output=True, check=False)
        if run.returncode != 0:
            yield f"{path}: does not compile alone:\n{run.stderr.strip()}"


def write(root, path, text):
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w", encoding="utf-8") as file:
        file.write(text)


def self_test():
    with tempfile.TemporaryDirectory() as root:
        write(root, "common/base/a.h", '#include <stdio.h>\n#include "common/base/b.h"\n')
        write(root, "common/base/b.h", "typedef int b_t;\n")
        write(root, "worker/w.c", '#include "kernels/k.h"\n#include "shoal/v1/x.pb-c.h"\n'
              'char name[] = "/tmp/x-XXXXXX";  /* a stubborn todo list */\n')
        write(root, "kernels/k.h", '#include "common/base/a.h"\n')
        clean = list(check_tree(root))
        assert clean == [], clean
        assert list(check_headers(root, ["cc", "-I."])) == []
        defects = {
            "common/base/up.h": '#include "common/model/model.h"\n',
            "common/model/up.c": '#include "common/net/rpc.h"\n',
            "common/model/proto.c": '#include "shoal/v1/jobs.pb-c.h"\n',
            "kernels/cpu/up.c": '#include "../../worker/engine/stage.h"\n',
            "coordinator/c.c": '#include "worker/agent.h"\n',
            "worker/c.h": "#include <coordinator/core/core.h>\n",
            "cli/k.c": '#include "kernels/ops.h"\n',
            "docs/p.md": "see /" + "work/main/docs\n",
            "tests/t.py": "x = 1  # " + WORDS[0] + "\n",
            "cli/f.c": "/* good " + WORDS[6] + " */\n",
            "cli/f.c.orig": "int f;\n",
        }
        for path, text in defects.items():
            write(root, path, text)
        found = [line.split(":")[0] for line in check_tree(root)]
        assert sorted(found) == sorted(defects), (found, sorted(defects))
        write(root, "common/base/alone.h", "unknown_t value;\n")
        alone = [line.split(":")[0] for line in check_headers(root, ["cc", "-I."])]
        assert "common/base/alone.h" in alone and "common/base/a.h" not in alone, alone
    print("every planted defect is found, and nothing else")


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return 0
    root = sys.argv[1]
    if "--headers" in sys.argv:
        defects = list(check_headers(root, sys.argv[sys.argv.index("--") + 1:]))
    else:
        defects = list(check_tree(root))
    print("\n".join(defects) if defects else "no defect")
    return 1 if defects else 0


sys.exit(main())
