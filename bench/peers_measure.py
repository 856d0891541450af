"""How bench/peers measures: one process for each figure, ours and the peers' in turn, the ceilings of the
probes, and the rows of the table, which are kept in build/peers-venv/rows.json so that parts can be run one by
one. Nothing here knows which rows there are."""
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import peers_build as built

BIN = os.environ.get("SHOAL_BIN_DIR", os.path.join(built.ROOT, "build", "release", "bin"))
TESTS = os.path.join(os.path.dirname(BIN), "tests")
ROWS = os.path.join(built.VENV, "rows.json")
CHOICES = os.path.join(built.VENV, "choices.json")
# What a matmul reaches at most of the probe of its unit: a scale for 32 values needs a multiply-add for
# each dot product of 32, on the same ports; a minimum or a scale for 16 needs more.
SHARES = {"Q4_0": 0.88, "Q8_0": 0.88, "Q4_1": 0.80, "Q4_K_M": 0.80, "BF16": 1.0}
BITS = {"Q4_0": 4.5, "Q4_1": 5.0, "Q8_0": 8.5, "BF16": 16.0}
NEAR_CEILING, BEYOND_CEILING = 0.92, 1.08
# Of a row that is meant to be quoted; the page marks those with fewer.
ROUNDS = 5
# Set by --smoke: everything is so many times shorter, and the peers have one thread (their barriers take seconds on
# a busy machine). That shows that all rows run, and measures nothing.
shorter = 1


def read_json(path, default):
    if not os.path.exists(path):
        return default
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_json(path, value):
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    os.rename(path + ".part", path)


def lines_of(command, env=None):
    """The lines of JSON that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, **(env or {})), check=False)
    if done.returncode != 0:
        raise SystemExit(f"peers: {' '.join(command)} gave {done.returncode}:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def short(n):
    return max(n // shorter, min(n, 8))


def short_case(case):
    """Numbers of a case: "batch" has its streams first, which stay."""
    kind, *numbers = case.split(":")
    stay = 1 if kind == "batch" else 0
    return ":".join([kind] + numbers[:stay] + [str(short(int(number))) for number in numbers[stay:]])


def ours(file, threads, prompt, gen, batches="1", tp=1, stages=1, repeats=3, env=None, speculate=0, extra=(),
         programs=None):
    """{(kind, batch): tokens/s} of `shoal bench`; kind is "pp" or "tg". `programs` is the folder of another build."""
    command = [os.path.join(programs or BIN, "shoal"), "bench", "--model", file, "--prompt", str(short(prompt)),
               "--gen", str(short(gen)), "--batch", batches, "--threads", str(threads),
               "--tp", str(tp), "--stages", str(stages), "--repeats", str(repeats),
               "--speculate", str(speculate), *extra, "-o", "json"]
    out = {}
    for case in lines_of(command, env):
        out["pp", case["batch"]] = case["prefill_tokens_per_s"]
        out["tg", case["batch"]] = case["decode_tokens_per_s"]
    return out


def by_case(lines):
    out = {}
    for line in lines:
        if line["case"] == "load":
            out["load"] = line["seconds"]
            out["rss"] = line["rss_bytes"]
            continue
        kind, *numbers = line["case"].split(":")
        out[("tg" if kind == "batch" else kind, int(numbers[0]) if kind == "batch" else 1)] = line["tokens_per_s"]
    return out


def llama(file, threads, *cases, choice=None, servers="-", avx2=False):
    """The same of llama.cpp; `choice` is (flash attention, ubatch, unified cache)."""
    flash, ubatch, unified = choice or (1, 512, 1)
    threads = 1 if shorter > 1 else threads
    command = [built.DRIVER, "bench", file, str(threads), str(flash), str(ubatch), str(unified), servers,
               *map(short_case, cases)]
    return by_case(lines_of(command, {"LD_LIBRARY_PATH": built.AVX2} if avx2 else None))


def ctranslate2(name, threads, *cases):
    program = os.path.join(built.HERE, "peers_ctranslate2.py")
    threads = 1 if shorter > 1 else threads
    command = [built.PYTHON, program, built.ctranslate2_model(name), str(threads), *map(short_case, cases)]
    return by_case(lines_of(command))


def openvino(file, threads, *cases):
    program = os.path.join(built.HERE, "peers_openvino.py")
    threads = 1 if shorter > 1 else threads
    return by_case(lines_of([built.PYTHON, program, file, str(threads), *map(short_case, cases)]))


def best_choice(file, kind, avx2=False):
    """The settings with which llama.cpp is fastest, each tried twice on a short case and then kept. `kind` is
    "pp", "tg" or "batch"."""
    kept = read_json(CHOICES, {})
    key = f"{os.path.basename(file)} {kind}{' avx2' if avx2 else ''}"
    if key not in kept:
        case, tried = {"pp": ("pp:128", [(0, 512, 1), (1, 512, 1)]), "tg": ("tg:16", [(0, 512, 1), (1, 512, 1)]),
                       "batch": ("batch:16:16:8", [(0, 512, 0), (0, 512, 1), (1, 512, 0), (1, 512, 1)])}[kind]
        rates = [0.0] * len(tried)
        for _ in range(2):
            for i, choice in enumerate(tried):
                told = llama(file, 2, case, choice=choice, avx2=avx2)
                rates[i] = max([rates[i]] + [value for name, value in told.items() if name[0] in ("pp", "tg")])
        kept[key] = tried[rates.index(max(rates))]
        write_json(CHOICES, kept)
    return tuple(kept[key])


class Budget:
    """Five rounds, or fewer when the time is short: each stretch may use its share of what is left."""

    def __init__(self, rounds, seconds):
        self.rounds = rounds
        self.end = time.monotonic() + seconds if seconds else None
        self.share_end = None

    def left(self):
        return self.end - time.monotonic() if self.end else float("inf")

    def give(self, share):
        """What follows may take this share of the time that is left."""
        self.share_end = time.monotonic() + max(self.left(), 0) * share if self.end else None

    def enough(self, n_done, last_s):
        if n_done >= self.rounds:
            return True
        return n_done > 0 and self.share_end is not None and time.monotonic() + last_s > self.share_end


def alternate(budget, probe=None, **runs):
    """Runs all in turn, round after round; {name: {metric: [a value a round]}}. `probe`, a Probes, is taken before
    the first round and after each."""
    values = {name: {} for name in runs}
    n_done, last_s = 0, 0.0
    if probe is not None:
        probe.begin()
    while not budget.enough(n_done, last_s):
        begun = time.monotonic()
        for name, measure in runs.items():
            for metric, value in measure().items():
                values[name].setdefault(metric, []).append(value)
        if probe is not None:
            probe.take()
        n_done, last_s = n_done + 1, time.monotonic() - begun
    return values


# ---- ceilings ----

class Probes:
    """What the machine can do, by number of threads. Within an hour what two threads read a second may differ by
    a factor of two, so each stretch of rounds has probes of its own, and its ceilings are those of their medians."""

    def __init__(self):
        self.taken, self.stretch = [], 0
        self.take()

    def take(self):
        program = os.path.join(BIN, "peers-probe")
        self.taken.append({threads: lines_of([program, str(threads)])[0] for threads in (1, 2)})

    def begin(self):
        """A stretch of rounds begins; the probe that ended the one before is its first."""
        self.stretch = len(self.taken) - 1

    def __getitem__(self, threads):
        """The medians of the last stretch."""
        return self.over(statistics.median, self.taken[self.stretch:], threads)

    @staticmethod
    def over(function, taken, threads):
        return {name: round(function([one[threads][name] for one in taken]), 1)
                for name in taken[0][threads] if name != "threads"}

    def told(self):
        """For the page: medians of all, least and most."""
        return {str(threads): [self.over(function, self.taken, threads) for function in (statistics.median, min, max)]
                for threads in (1, 2)}


class Shape:
    """What a token of a model costs."""

    def __init__(self, file, kind):
        done = subprocess.run([os.path.join(BIN, "shoal"), "inspect", file, "-o", "json"], check=True,
                              capture_output=True, text=True)
        told = json.loads(done.stdout)
        self.kind = kind
        self.ends = told["vocab"] * told["hidden"]
        tied = told["tied_embeddings"]
        self.body = told["active_parameters"] - self.ends * (1 if tied else 2)
        self.file_bytes = told["weight_bytes"]
        self.bytes = told["weight_bytes"] - (0 if tied else self.ends * BITS[kind] / 8)
        self.kv_bytes = told["kv_bytes_per_token"]

    def operations_per_s(self, probe, avx2):
        if self.kind == "BF16":
            return probe["bf16_gflops"] * 1e9
        return probe["avx2_int8_gops" if avx2 else "int8_gops"] * 1e9 * SHARES[self.kind]

    def prefill(self, probe, avx2=False):
        """Tokens/s if matmuls alone cost time; the head is computed for the last token only."""
        return self.operations_per_s(probe, avx2) / (2 * self.body)

    def decode(self, probe, batch=1, context=64, avx2=False):
        """The slower of reading all weights and keys once a step, and of computing."""
        read_s = (self.bytes + batch * context * self.kv_bytes) / (probe["read_gbs"] * 1e9)
        compute_s = batch * 2 * (self.body + self.ends) / self.operations_per_s(probe, avx2)
        return batch / max(read_s, compute_s)


# ---- rows ----

def row(label, mine, other, other_name="llama.cpp", target=None, ceiling=None, unit="tokens/s", lower=False, note="",
        digits=2):
    """`target` is of ours ÷ other; with `lower` less is better. A time or rate of 0 is none: nothing passes by it."""
    if not mine or not other or min(*mine, *other) <= 0:
        sign = "≤" if lower else "≥"
        return missing(label, f"no measurement: {mine} beside {other}", f"{sign} {target:g}" if target else "")
    return {"label": label, "ours": mine, "other": other, "other_name": other_name, "target": target,
            "ceiling": ceiling, "unit": unit, "lower": lower, "note": note, "digits": digits}


def missing(label, why, target=""):
    return {"label": label, "missing": why, "target": target}


def ratio_of(one):
    return statistics.median(one["ours"]) / statistics.median(one["other"])


def verdict(one):
    if "missing" in one:
        return "not run"
    if one["target"] is None:
        return "–"
    ratio = ratio_of(one)
    if (ratio <= one["target"]) if one["lower"] else (ratio >= one["target"]):
        return "pass"
    # What is far above its ceiling shows that the probe was disturbed, not that a limit was reached.
    if one["ceiling"] and NEAR_CEILING <= statistics.median(one["ours"]) / one["ceiling"] <= BEYOND_CEILING:
        return "pass (ceiling)"
    return "**miss**"


def number(values):
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def probe_text(name, told):
    """A median and its range; of parts measured before there were several probes, the only one."""
    if not isinstance(told, list):
        return f"{name} {told[name]}"
    middle, least, most = (one[name] for one in told)
    return f"{name} {middle}" if least == most else f"{name} {middle} ({least} to {most})"


def rounds_of(part):
    return [len(one["ours"]) for one in part["rows"] if "missing" not in one]


def print_rows(title, part):
    print(f"\n## {title}\n")
    probes = [", ".join(probe_text(name, told) for name in (told[0] if isinstance(told, list) else told)
                        if name != "threads") for told in part["probes"].values()]
    print(f"Measured {part['when']} in {part['seconds'] / 60:.1f} minutes; probes with 1 and 2 threads: "
          + "; ".join(probes) + ".\n")
    print("| row | ours | other | ours ÷ other | target | of its ceiling | rounds | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for one in part["rows"]:
        if "missing" in one:
            print(f"| {one['label']} | – | – | – | {one['target']} | – | – | not run: {one['missing']} |")
            continue
        share = f"{100 * statistics.median(one['ours']) / one['ceiling']:.0f} %" if one["ceiling"] else "–"
        sign = "≤" if one["lower"] else "≥"
        target = f"{sign} {one['target']:.3g}" if one["target"] is not None else "–"
        note = f"; {one['note']}" if one["note"] else ""
        rounds = len(one["ours"])
        few = f"{rounds} of {ROUNDS}" if rounds < ROUNDS else f"{rounds}"
        print(f"| {one['label']} | {number(one['ours'])} {one['unit']} | {one['other_name']}: {number(one['other'])} "
              f"| {ratio_of(one):.{one.get('digits', 2)}f} | {target} | {share} | {few} | {verdict(one)}{note} |")


def keep(part, rows, probe, seconds):
    kept = read_json(ROWS, {})
    kept[part] = {"when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "probes": probe.told(), "rows": rows,
                  "seconds": round(seconds)}
    write_json(ROWS, kept)


# ---- things that run beside ----

@contextlib.contextmanager
def neighbour(cpu=1):
    """A process that keeps one processor busy."""
    code = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as one:
        try:
            time.sleep(0.3)  # until Python has started; there is nothing to wait for
            yield
        finally:
            one.kill()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def rpc_servers(n, threads):
    """Servers of llama.cpp's RPC backend on this machine; yields what its driver takes."""
    ports = [free_port() for _ in range(n)]
    children = [subprocess.Popen([built.RPC_SERVER, "-H", "127.0.0.1", "-p", str(port), "-t", str(threads)],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for port in ports]
    try:
        for port in ports:
            wait_for_port(port, 10)
        yield ",".join(f"127.0.0.1:{port}" for port in ports)
    finally:
        for child in children:
            child.kill()
            child.wait()


def wait_for_port(port, timeout_s):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"peers: nothing listens on port {port}")
