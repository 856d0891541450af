"""The rows of bench/peers that need a running server or a loading one: bench-serve puts the load on, on
`shoal up` and, where it could be built, on llama-server. Servers are started anew for each round and take
turns; the client runs on the same processors for both."""
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

import peers_build as built
import peers_measure as m

CLIENTS, PROMPT, GEN = 16, 128, 64
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@contextlib.contextmanager
def shoal(file, *options):
    """A cluster of one rank with two threads behind one coordinator; yields its endpoint."""
    room = tempfile.mkdtemp(prefix="shoal-peers-")
    program = os.path.join(m.BIN, "shoal")
    env = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    try:
        subprocess.run([program, "up", "--model", file, "--name", "m", "--tp", "1", "--stages", "1", "--coordinators",
                        "1", "--threads", "2", "--data", room, "--detach", *options], check=True, timeout=180, env=env,
                       **QUIET)
        with open(os.path.join(room, "cluster.json"), encoding="utf-8") as told:
            yield json.load(told)["coordinators"][0]
    finally:
        subprocess.run([program, "down", "--data", room], check=False, env=env, **QUIET)
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def llama_server(file):
    port = m.free_port()
    threads = "1" if m.shorter > 1 else "2"
    command = [built.SERVER, "-m", file, "--host", "127.0.0.1", "--port", str(port), "-t", threads, "-tb", threads,
               "-np", str(CLIENTS), "-c", str(CLIENTS * 512), "-fa", "on", "--no-webui"]
    with subprocess.Popen(command, **QUIET) as child:
        try:
            m.wait_for_port(port, 60)
            wait_healthy(port)
            yield f"127.0.0.1:{port}"
        finally:
            child.kill()


def wait_healthy(port):
    """It listens before its model is there, and answers 503 until then."""
    import http.client
    end = time.monotonic() + 60
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health")
        if connection.getresponse().status == 200:
            return
        time.sleep(0.05)
    raise SystemExit("peers: llama-server does not become ready")


def load(endpoint, **options):
    """With a request that failed it is no measurement."""
    if "gen" in options:
        options["gen"] = m.short(options["gen"])
    words = [word for name, value in options.items() for word in ("--" + name, str(value))]
    told = m.lines_of([os.path.join(m.BIN, "bench-serve"), "--endpoint", endpoint, *words])[0]
    if told["failed"]:
        raise SystemExit(f"peers: {told['failed']} of {told['requests']} requests failed")
    return told


def under_load(server, file, kind, options=(), **load_options):
    """What one round of load on a server of its own gives."""
    with server(file, *options) as endpoint:
        return load(endpoint, kind=kind, **load_options)


def clients(budget, _probe):
    """16 streaming clients in a closed loop."""
    if not os.path.exists(built.SERVER):
        yield m.missing("16 streaming clients beside llama-server", "it is not built (bench/peers setup)", "≥ 3.5")
    kinds = ("Q4_0", "Q4_1", "Q8_0")
    for i, kind in enumerate(kinds):
        file = built.smollm2(kind)
        wanted = {"clients": CLIENTS, "requests": 3 * CLIENTS, "prompt": PROMPT, "gen": GEN}
        budget.give(1 / (len(kinds) - i))
        # The engine alone, with as many streams and guesses, shows what the way through gRPC costs.
        runs = {"ours": lambda file=file: under_load(shoal, file, "grpc", **wanted),
                "engine": lambda file=file: m.ours(file, 2, PROMPT, GEN, str(CLIENTS), repeats=2, speculate=8)}
        if os.path.exists(built.SERVER):
            runs["peer"] = lambda file=file: under_load(llama_server, file, "http", **wanted)
        got = m.alternate(budget, **runs)
        mine, engine = got["ours"], got["engine"]
        whole = [1 / (1 / decode + m.short(PROMPT) / m.short(GEN) / prefill)
                 for prefill, decode in zip(engine["pp", CLIENTS], engine["tg", CLIENTS])]
        label = f"SmolLM2 {kind}, 16 clients, prompt {PROMPT}, gen {GEN}"
        if "peer" in got:
            peer = got["peer"]
            yield m.row(f"{label}: tokens/s", mine["tokens_per_s"], peer["tokens_per_s"], "llama-server", 3.5)
            for what, name, target in (("TTFT p50", "ttft_ms_p50", 0.25), ("TTFT p99", "ttft_ms_p99", None),
                                       ("inter-token p50", "gap_ms_p50", None), ("inter-token p99", "gap_ms_p99", 1)):
                yield m.row(f"{label}: {what}", mine[name], peer[name], "llama-server", target, unit="ms", lower=True)
        yield m.row(f"{label}: tokens/s", mine["tokens_per_s"], whole, "the engine alone, prompts included", 0.95)


def prefix(budget, _probe):
    """The time to the first token of prompts that begin alike, beside prompts that do not."""
    budget.give(0.4)
    file = built.smollm2("Q4_0")

    def both():
        with shoal(file) as endpoint:
            cold = load(endpoint, clients=1, requests=8, prompt=1024, gen=2)
            warm = load(endpoint, clients=1, requests=8, prompt=1024, gen=2, shared=0.95, seed=2)
        return {"cold": cold["ttft_ms_p50"], "warm": warm["ttft_ms_p50"]}
    got = m.alternate(budget, ours=both)["ours"]
    yield m.row("SmolLM2 Q4_0, prompt 1,024, 95 % in the cache: TTFT", got["warm"], got["cold"], "cold", 0.12,
                unit="ms", lower=True)
    # Prompts that have nothing in common: the engine with the cache, which looks and keeps in vain, and without.
    # Four repetitions, since the first ones touch memory for the first time; the best round of each, since what is
    # looked for is smaller than what rounds differ by, and a busy machine only ever takes time away.
    def engine(share):
        return lambda: m.ours(file, 2, 512, 32, "8", repeats=4, extra=("--shared", share))
    budget.give(1)
    got = m.alternate(budget, on=engine("0"), off=engine("-1"), off_again=engine("-1"), on_again=engine("0"))
    for what, name in (("prompt 512", "pp"), ("gen 32", "tg")):
        on, off = ([value for run in (kind, kind + "_again") for value in got[run][name, 8]] for kind in ("on", "off"))
        yield m.row(f"SmolLM2 Q4_0, 8 streams, {what}, nothing in the cache", [max(on)], [max(off)],
                    "ours without the cache", 0.99,
                    note=f"the best of {len(on)} each; medians {statistics.median(on):,.0f} and "
                         f"{statistics.median(off):,.0f}")


def scheduling(budget, _probe):
    """What a step costs the scheduler, beside what a step may."""
    program = os.path.join(m.TESTS, "engine_scheduler_scale_test")
    if not os.path.exists(program):
        yield m.missing("scheduler step, 256 running and 1,000 waiting", "the tests are not built", "≤ 1")
        return
    budget.give(1)
    got = m.alternate(budget, ours=lambda: m.lines_of([program, "--bench"])[0])["ours"]
    n = len(got["churning_us"])
    for what, name in (("one ends and one starts in each", "churning_us"), ("blocks are short", "blocked_us")):
        yield m.row(f"scheduler step, 256 running and 1,000 waiting, {what}", got[name], [50.0] * n, "50 µs", 1,
                    unit="µs", lower=True, note="caches cold; no allocation; no system call (a test forbids them)")
    yield m.row("scheduler, all of 8 prompts of 512 tokens and 32 more each, nothing in the prefix cache",
                got["cached_us"], got["uncached_us"], "without a prefix cache", unit="µs", lower=True,
                note="the engine takes more than a second for them")


# Streams that repeat themselves get some nine tokens a step, guesses included, and the prompt takes some 180 steps.
JOIN = {"clients": 8, "requests": 8, "prompt": 64, "gen": 3072}


def too_few(rounds):
    """Why the gaps of these rounds tell nothing, or None. Streams have to outlast the prompt that joins, and there have
    to be enough gaps for a percentile, which bench-serve leaves out otherwise."""
    for one in rounds:
        if one["n_running"] < JOIN["clients"]:
            return f"{one['n_running']} of {JOIN['clients']} streams ran when the prompt had its first token"
        if any(part + "gap_ms_p99" not in one for part in ("before_", "", "after_")):
            return (f"{one['before_n_gaps']} gaps before, {one['n_gaps']} while it was computed and "
                    f"{one['after_n_gaps']} after it are too few")
    return None


def joining(budget, _probe):
    """A prompt of 4,096 tokens comes while eight streams run, which still run when its first token is there."""
    budget.give(0.7)
    file = built.smollm2("Q4_0")
    rounds = {"ours": [], "whole": []}

    def run(name, *options):
        def one():
            told = under_load(shoal, file, "grpc", ("--context-max", "8192", *options), join=m.short(4096), **JOIN)
            rounds[name].append(told["join"])
            return {"tokens_per_s": told["tokens_per_s"]}
        return one
    both = m.alternate(budget, ours=run("ours"), whole=run("whole", "--chunk", "4096", "--whole-prompts"))
    label = "SmolLM2 Q4_0, 8 streams"
    why = too_few(rounds["ours"])
    if why:
        yield m.missing(f"{label} and 4,096 tokens that join", why)
    else:
        def values(name):
            return [one[name] for one in rounds["ours"]]

        def around(name):
            """The streams' own texts grow by more than a thousand tokens meanwhile, which makes their steps longer
            with or without the prompt: what they would have had without it lies halfway. A single long gap after the
            prompt allows no more while it came: the tail grows with the middle, or less."""
            def grown(one):
                return one["before_" + name] * one["after_gap_ms_p50"] / one["before_gap_ms_p50"]
            return [(one["before_" + name] + min(one["after_" + name], grown(one))) / 2 for one in rounds["ours"]]
        yield m.row(f"{label} and 4,096 tokens that join: tokens/s", both["ours"]["tokens_per_s"],
                    both["whole"]["tokens_per_s"], "ours, the prompt in one step", 0.95)
        for what, target in (("p99", 1.5), ("p50", None)):
            yield m.row(f"{label}, inter-token {what} while 4,096 tokens join", values(f"gap_ms_{what}"),
                        around(f"gap_ms_{what}"), "halfway between before and after it", target, unit="ms", lower=True,
                        note=f"before {statistics.median(values('before_gap_ms_' + what)):.1f} ms, after "
                             f"{statistics.median(values('after_gap_ms_' + what)):.1f} ms; "
                             f"at least {min(values('before_n_gaps'))} gaps before, {min(values('n_gaps'))} meanwhile, "
                             f"{min(values('after_n_gaps'))} after; "
                             f"TTFT of the prompt {statistics.median(values('ttft_ms')):,.0f} ms")

    def engine(chunk):
        return lambda: m.ours(file, 2, 4096, 8, repeats=2, extra=("--chunk", str(chunk)))
    budget.give(1)
    got = m.alternate(budget, pieces=engine(512), one=engine(4096))
    yield m.row("SmolLM2 Q4_0, prompt 4,096 in pieces of 512", got["pieces"]["pp", 1], got["one"]["pp", 1],
                "ours, in one step", 0.95)


def peak_rss(pid):
    """Of a process and its children, each at its own peak; None once it has ended."""
    total = 0
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            pids = [pid] + [int(child) for child in file.read().split()]
        for one in pids:
            with open(f"/proc/{one}/status", encoding="utf-8") as file:
                total += next((int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return None
    return total


def first_token(file, room):
    """Seconds from the start of a worker to the logits after two tokens, packed weights kept in `room`; and memory."""
    command = [os.path.join(m.BIN, "shoal-worker"), "offline", "eval", "--model", file, "--ids", room + "/ids.json",
               "--out", room + "/out.safetensors", "--tp", "1", "--threads", "2", "--last", "--chunk", "64",
               "--pack-cache", room + "/cache", "-o", "json"]
    begun, peak, ended = time.monotonic(), [0], threading.Event()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ, SHOAL_LOG="error")) as child:
        def watch():
            while not ended.wait(0.005):
                peak[0] = max(peak[0], peak_rss(child.pid) or 0)
        watcher = threading.Thread(target=watch)
        watcher.start()
        child.wait()  # by the end itself, as `cat` is timed, not by the watcher's next look
        seconds = time.monotonic() - begun
        ended.set()
        watcher.join()
    if child.returncode != 0:
        raise SystemExit(f"peers: {' '.join(command)} gave {child.returncode}")
    return {"seconds": seconds, "rss": peak[0]}


def up_s(file):
    """Seconds from `shoal up` until it says that it serves."""
    begun = time.monotonic()
    with shoal(file):
        return time.monotonic() - begun


def cat(file):
    begun = time.monotonic()
    subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)
    return {"seconds": time.monotonic() - begun}


def start(budget, _probe):
    """From the start of a process with kept packed weights to its first token, beside reading the file; and memory."""
    for i, kind in enumerate(("Q4_0", "BF16")):
        file = built.synthetic(kind)
        budget.give(1 / (2 - i))
        with tempfile.TemporaryDirectory(prefix="shoal-peers-") as room:
            with open(os.path.join(room, "ids.json"), "w", encoding="utf-8") as out:
                json.dump([[1, 3]], out)
            os.mkdir(os.path.join(room, "cache"))
            first_token(file, room)  # packs, and keeps what it packed
            got = m.alternate(budget, ours=lambda file=file, room=room: first_token(file, room),
                              read=lambda file=file: cat(file), peer=lambda file=file: m.llama(file, 2, "tg:1"))
        size = [m.Shape(file, kind).file_bytes] * len(got["ours"]["rss"])
        yield m.row(f"1 B {kind}, start to first token, packed weights kept", got["ours"]["seconds"],
                    got["read"]["seconds"], "cat of the file from the page cache", 1.2, unit="s", lower=True)
        yield m.row(f"1 B {kind}, start to first token", got["ours"]["seconds"], got["peer"]["load"],
                    "llama.cpp's load alone", unit="s", lower=True)
        allowance = 30 << 20
        yield m.row(f"1 B {kind}, peak RSS less 30 MB", [(one - allowance) / 1e6 for one in got["ours"]["rss"]],
                    [one / 1e6 for one in size], "bytes of tensors", 1.15, unit="MB", lower=True)
        yield m.row(f"1 B {kind}, peak RSS", [one / 1e6 for one in got["ours"]["rss"]],
                    [one / 1e6 for one in got["peer"]["rss"]], unit="MB", lower=True)
    budget.give(1)
    seconds = m.alternate(budget, up=lambda: {"seconds": up_s(built.REAL)})["up"]["seconds"]
    yield m.row("`shoal up` of SmolLM2 until it serves, etcd and redis included", seconds, [1.0] * len(seconds),
                "1 s", 1, unit="s", lower=True)
