"""Why rows of the page miss their target, and what is to be tried next. A missed row that no pattern here names is
listed as not understood, so that a new miss cannot hide behind an old reason."""
import re

import peers_measure as m

REASONS = [
    (r"^SmolLM2 \S+, gen 128, 2 threads",
     "weights are read at 80 to 95 % of what two threads read; each of 121 shared ops loses 1.5 to 2 µs to its signal, "
     "its first panels and its join, and ops of one thread take 0.1 ms a step",
     "every thread walks the whole step, with one barrier for each op"),
    (r"^SmolLM2 .*AVX2 only", "AVX2 has no 8-bit dot product: 16-bit products and unpacking bound it",
     "sums of many rows in registers, as AVX-512 has them"),
    (r"^1 B Q4_0, prompt 512, 2 threads",
     "two fma for each group of 32 share the ports of the dot products: matmuls are at 92 to 97 % of what that allows, "
     "everything else is 8 % of a layer",
     "scales of inputs as powers of two free one fma (8 to 14 %), once noise is spared elsewhere"),
    (r"^1 B \S+, gen 64", "at the memory's limit; the host moves the processors between two states that read 41 to 50 "
     "and 65 to 73 GB/s", "rounds in one state (`line_ns`)"),
    (r"clients.*: TTFT|clients.*inter-token",
     "prompts are 0.3 s of two cores for 16 clients at once and share steps with those who decode",
     "waves that begin with the shortest prompts"),
    (r"clients.*: tokens/s",
     "the engine alone makes little more than the target; coordinator, clients, etcd and redis take 3.4 % of the same "
     "two cores, and the team divides work in fixed halves beside them",
     "panels dealt out in turn when one thread is late"),
    (r"while 4,096 tokens join",
     "the learnt price of a prompt's keys rises to four times what is right during a long join, and a neighbour's slow "
     "steps count as the prompt's", "a price of keys that the device's own attention rate bounds"),
    (r"one step|in pieces of", "runs differ by more than the pieces cost", "more rounds"),
    (r"leaves of|, gen, 8 streams|^(SmolLM2|1 B) \S+, prompt 512, 2 threads, one leaf",
     "a leaf's end costs additions and a loop's exit; with one row neither explains what is left; whole models differ "
     "by more from run to run than leaves cost", "one row's loop by leaves of 256; counts of leaves that suit the cut"),
    (r"stages 2 .*the same sequences",
     "two batches in flight read all weights twice where the other reads them once",
     "one batch through both stages while memory bounds it"),
    (r"stages 2 ",
     "a pipeline of few prompts is filled and drained; the last stage gathers and samples while the first waits",
     "sampling on the leader, a third batch in flight"),
    (r"tp 2 ", "each op of a small model ends in an exchange between two processes",
     "the exchange by pieces in one op with residual and norm"),
    (r"prefix|nothing in the cache", "runs differ by more than a prefix cache costs (150 to 250 µs for 8 prompts)",
     "more rounds"),
]


def rows_that_miss(kept, parts):
    return [(name, one) for name in parts if name in kept for one in kept[name]["rows"] if m.verdict(one) == "**miss**"]


def print_misses(kept, parts):
    """A table of reasons with the rows that they are for."""
    found = {}
    for name, one in rows_that_miss(kept, parts):
        label = one["label"] + (", one leaf" if name == "onetext" else "")
        reason = next((k for k, (pattern, _, _) in enumerate(REASONS) if re.search(pattern, label)), None)
        found.setdefault(reason, []).append(f"{one['label']} ({m.ratio_of(one):.2f} of {one['other_name']})")
    if not found:
        return
    print("\n## Rows that miss: why, and what comes next\n\n| rows | why | next |\n|---|---|---|")
    for reason in sorted(found, key=lambda k: (k is None, k)):
        why, idea = REASONS[reason][1:] if reason is not None else ("not understood", "a profile of both")
        print(f"| {'; '.join(found[reason])} | {why} | {idea} |")
