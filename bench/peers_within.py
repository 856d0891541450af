"""The parts of bench/peers that hold Shoal against itself: `onetext`, what the written order of sums costs
beside a build in which every matmul has one leaf, and `stages`, two stages beside one process."""
import os
import re
import subprocess

import peers_build as built
import peers_measure as m

# A cost of 3 %, 4 % and 2 % as a ratio of rates (the bars that were set for it).
MODEL, LEAVES_128, LEAVES_256 = 1 / 1.03, 1 / 1.04, 1 / 1.02
ONE_LEAF = os.path.join(built.ROOT, "build", "one-leaf")


# ---- the written order ----

def one_leaf_programs():
    """The folder of programs built without leaves; the build is ninja's to bring up to date."""
    env = dict(os.environ, CCACHE_BASEDIR=built.ROOT)
    if not os.path.exists(os.path.join(ONE_LEAF, "build.ninja")):
        built.run("cmake", "-S", built.ROOT, "-B", ONE_LEAF, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                  "-DSHOAL_ONE_LEAF=ON", "-DSHOAL_TESTS=OFF", stdout=subprocess.DEVNULL, env=env)
    built.run("nice", "-n", "10", "ninja", "-C", ONE_LEAF, "shoal", "shoal-worker", "kernels-bench",
              stdout=subprocess.DEVNULL, env=env)
    programs = os.path.join(ONE_LEAF, "bin")
    for folder, wanted in ((programs, True), (m.BIN, False)):
        told = subprocess.run([os.path.join(folder, "shoal-worker"), "version"], capture_output=True, text=True,
                              check=True).stdout
        if ("one-leaf" in told) != wanted:
            raise SystemExit(f"peers: {folder} has {told.strip()}, which is the wrong one of the two builds")
    return programs


def matmul(programs, kind, rows, leaves):
    """GOPS of a matmul of 2,048 inputs, one thread, the best instructions; the other build merges the leaves."""
    command = [os.path.join(programs, "kernels-bench"), "--types", kind, "--rows", str(rows), "--shape", "2048x1024",
               "--leaves", str(leaves), "--rounds", "15"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"gops": float(re.findall(r"M +\d+ +([\d.]+) GOPS", text)[-1])}


def whole_models(budget, one_leaf):
    files = [(f"SmolLM2 {kind}", built.smollm2(kind), 3) for kind in ("Q4_0", "Q4_1", "Q8_0", "BF16")]
    files.append(("1 B Q4_0", built.synthetic("Q4_0"), 1))
    for i, (name, file, repeats) in enumerate(files):
        budget.give(1 / (len(files) - i + 1))
        runs = {}
        for build, programs in (("written", m.BIN), ("one", one_leaf)):
            runs[build + " pp"] = lambda file=file, programs=programs, repeats=repeats: m.ours(
                file, 2, 512, 2, repeats=repeats, programs=programs)
            runs[build + " tg"] = lambda file=file, programs=programs, repeats=repeats: m.ours(
                file, 2, 32, 48, "8", repeats=repeats, programs=programs)
        order = sorted(runs, key=lambda run: run.endswith("tg"))
        got = m.alternate(budget, **{run: runs[run] for run in order})
        yield m.row(f"{name}, prompt 512, 2 threads", got["written pp"]["pp", 1], got["one pp"]["pp", 1],
                    "one leaf", MODEL, digits=3)
        yield m.row(f"{name}, gen, 8 streams, 2 threads", got["written tg"]["tg", 8], got["one tg"]["tg", 8],
                    "one leaf", MODEL, digits=3)


def onetext(budget, _probe):
    """The real build beside the one without leaves."""
    one_leaf = one_leaf_programs()
    yield from whole_models(budget, one_leaf)
    budget.give(1)
    cases = [(kind, rows, leaves) for kind in ("Q4_0", "Q8_0", "BF16") for rows in (1, 8, 96) for leaves in (16, 8)]
    runs = {(build, *case): lambda programs=programs, case=case: matmul(programs, *case)
            for case in cases for build, programs in (("written", m.BIN), ("one", one_leaf))}
    got = m.alternate(budget, **{" ".join(map(str, key)): run for key, run in runs.items()})
    for kind, rows, leaves in cases:
        of = lambda build: got[f"{build} {kind} {rows} {leaves}"]["gops"]
        label = f"a matmul of {kind}, {rows} row{'s' if rows > 1 else ''}, leaves of {2048 // leaves}, 1 thread"
        yield m.row(label, of("written"), of("one"), "one leaf", LEAVES_128 if leaves == 16 else LEAVES_256,
                    unit="GOPS", digits=3)


# ---- stages ----

STAGES = 2
BATCHES = (1, 8, 16)
PROMPTS = 16


def filled(n_batches):
    """The part of the time in which a pipeline works: n batches pass through S stages in n + S - 1 turns."""
    return n_batches / (n_batches + STAGES - 1)


def stages(budget, _probe):
    """Two stages of 1 thread with two batches in flight, beside one process of 2 threads."""
    models = (("1 B Q4_0", built.synthetic("Q4_0"), 32, 1), ("SmolLM2 Q4_1", built.REAL, 64, 2))
    in_flight = ",".join(str(STAGES * batch) for batch in BATCHES)
    alone = ",".join(map(str, sorted({*BATCHES, *(STAGES * batch for batch in BATCHES)})))
    for i, (name, file, gen, repeats) in enumerate(models):
        budget.give(1 / (len(models) - i))
        prompts = f"{STAGES},{PROMPTS}"
        got = m.alternate(
            budget,
            stages=lambda file=file, gen=gen: m.ours(file, 1, 32, gen, in_flight, stages=STAGES, repeats=3),
            one=lambda file=file, gen=gen: m.ours(file, 2, 32, gen, alone, repeats=3),
            prompts=lambda file=file, repeats=repeats: m.ours(file, 1, 512, 2, prompts, stages=STAGES,
                                                              repeats=repeats),
            one_prompts=lambda file=file, repeats=repeats: m.ours(file, 2, 512, 2, prompts, repeats=repeats))
        label = f"{name}, stages {STAGES} × 1 thread"
        for batch in BATCHES:
            rates = got["stages"]["tg", STAGES * batch]
            yield m.row(f"{label}, {STAGES} batches of {batch} in flight, gen {gen}", rates, got["one"]["tg", batch],
                        f"ours, 1 process, batches of {batch} one after the other", 0.95)
            yield m.row(f"{label}, the same sequences, gen {gen}", rates, got["one"]["tg", STAGES * batch],
                        f"ours, 1 process, all {STAGES * batch} in a batch", 0.95,
                        note="each batch reads all weights: twice what the other reads")
        for n in (PROMPTS, STAGES):
            yield m.row(f"{label}, {n} prompts of 512", got["prompts"]["pp", n], got["one_prompts"]["pp", n],
                        "ours, 1 process", 0.95,
                        note=f"a pipeline that is filled and drained with {n} whole prompts works {filled(n):.2f} of "
                             "the time; pieces of prompts make it more")
