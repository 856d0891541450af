"""The malformed seals (manifest.sha256), with the words of their errors."""

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"
NOT_OURS = "the name must be that of a file"
NO_DIGITS = "it must be 64 digits"
EARLY = "the seal ends before its chunks do"


def _case(name, words, text):
    return name + ".sha256", "INVALID", words, text


CASES = [
    _case("empty", "it seals no file", ""),
    _case("no-file", "it seals no file", "# shoal manifest 1\n"),
    _case("newer", "line 1: a newer version wrote this seal", "# shoal manifest 2\n" + ABC + "  a\n"),
    _case("path-up", "line 1: the name must be that of a file in the model's own folder", ABC + "  ../a\n"),
    _case("path-absolute", NOT_OURS, ABC + "  /etc/passwd\n"),
    _case("path-folder", NOT_OURS, ABC + "  sub/a\n"),
    _case("path-hidden", NOT_OURS, ABC + "  .hidden\n"),
    _case("path-backslash", NOT_OURS, ABC + "  a\\nb\n"),
    _case("path-control", NOT_OURS, ABC + "  a\tb\n"),
    _case("path-nul", NOT_OURS, ABC + "  a\0b\n"),
    _case("path-empty", "line 1: it must be 64 digits, two spaces", ABC + "  \n"),
    _case("path-twice", "a is there twice", f"{ABC}  a\n{ABC}  b\n{ABC}  a\n"),
    _case("one-space", "it must be 64 digits, two spaces", ABC + " a\n"),
    _case("hash-uppercase", "line 1: the digest must be 64 digits 0-9 and a-f", "BA" + ABC[2:] + "  a\n"),
    _case("hash-short", NO_DIGITS, "ba7816  a\n"),
    _case("line-empty", "line 2: " + NO_DIGITS, ABC + "  a\n\n"),
    _case("line-cut", "line 1: it is cut off", ABC + "  a"),
    _case("chunks-missing", "line 2: " + EARLY, ABC + "  a\n# chunks 4096 3 a\n"),
    _case("chunks-cut", "line 2: " + EARLY, f"{ABC}  a\n# chunks 4096 3 a\n#{ABC}"),
    _case("chunks-other-line", "line 3: a chunk must be # and 64 digits", f"{ABC}  a\n# chunks 4096 3 a\n{ABC}  bb\n"),
    _case("chunks-other-file", "line 2: chunks must follow the line of their",
          f"{ABC}  a\n# chunks 4096 3 b\n#{ABC}\n"),
    _case("chunks-first", "line 1: chunks must follow", f"# chunks 4096 3 a\n#{ABC}\n{ABC}  a\n"),
    _case("chunks-twice", "line 3: chunks must follow", ABC + "  a\n# chunks 4096 0 a\n# chunks 4096 0 a\n"),
    _case("chunks-small", 'line 2: it must be "# chunks"', f"{ABC}  a\n# chunks 16 3 a\n#{ABC}\n"),
    _case("chunks-negative", 'line 2: it must be "# chunks"', f"{ABC}  a\n# chunks 4096 -3 a\n#{ABC}\n"),
    _case("chunks-many", "ends before its chunks do", f"{ABC}  a\n# chunks 4096 999999999999999999 a\n#{ABC}\n"),
    _case("chunks-overflow", 'line 2: it must be "# chunks"', ABC + "  a\n# chunks 4096 9999999999999999999 a\n"),
    ("right.sha256", "OK", "", ABC + "  a\n"),
]

LARGE = [
    _case("million-files", "more than 16384 files", lambda: "".join(f"{ABC}  f{i}\n" for i in range(800000))),
]
