"""The part `hosts` of bench/peers: two hosts as network namespaces, joined by a bridge whose links are shaped
to 1 and to 10 Gbit/s, beside the same ranks inside one host. The bound at a link's speed is the time of one
host and the time that the bytes of the formula (`shoal plan`) take on that link; what the link really
carried is counted at the interface. Needs root; distributed peers are not run here."""
import json
import os
import subprocess
import sys
import tempfile

import peers_build as built
import peers_measure as m

sys.path.insert(0, os.path.join(built.ROOT, "tests", "cluster"))

PROMPT, GEN = 8, 64
GBIT_BYTES = 1e9 / 8
# Link speeds in Gbit/s; 0 is one host. One rank's share of the model fits a host of the two, the whole does not.
ONE_HOST, MEMORY = 0, {True: "4G", False: "620M"}


def token_ms(file, tp, stages, link_gb_s):
    """What the formula says a token takes on links of that speed, without their latency."""
    device = {"name": "c", "memory_gib": 8, "reserve_gib": 0, "bandwidth_gb_s": 30, "link_gb_s": 10, "link_us": 0,
              "tflops": {"f32": 0.2, "bf16": 0.4, "fp8": 0.4, "int8": 0.9}}
    hosts = {"hosts": [{"name": "h", "count": 2, "link_gb_s": link_gb_s, "link_us": 0, "devices": [device]}]}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file_of_hosts:
        json.dump(hosts, file_of_hosts)
        file_of_hosts.flush()
        done = subprocess.run([os.path.join(m.BIN, "shoal"), "plan", "--model", file, "--hosts", file_of_hosts.name,
                               "--tp", str(tp), "--stages", str(stages), "--batch", "1", "--context", "512", "-o",
                               "json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["roofline"]["decode_one"]["all_stages_ms"]


def link_ms(file, tp, stages, gbit):
    """What of that the link takes."""
    return token_ms(file, tp, stages, gbit / 8) - token_ms(file, tp, stages, 1e6)


def sent_bytes(lab, host):
    with subprocess.Popen(["ip", "netns", "exec", lab.ns(host), "cat", "/proc/net/dev"], stdout=subprocess.PIPE,
                          text=True) as child:
        line = next(line for line in child.stdout if line.strip().startswith("eth0"))
    return int(line.split(":")[1].split()[8])


def one_run(file, tp, stages, gbit):
    """A cluster of its own: what clients saw, and the bytes that left a host for each token."""
    import two_hosts_test as hosts
    hosts.BIN = m.BIN
    streams = stages
    with hosts.Lab() as lab:
        if gbit != ONE_HOST:
            for host in ("a", "b"):
                hosts.run("ip", "netns", "exec", lab.ns(host), "tc", "qdisc", "add", "dev", "eth0", "root", "tbf",
                          "rate", f"{gbit}gbit", "burst", "1mb", "latency", "50ms")
        lab.start_cluster(MEMORY[gbit == ONE_HOST], file, ("a",) if gbit == ONE_HOST else ("a", "b"))
        lab.shoal("deploy", "m", "--model", file, "--tp", tp, "--stages", stages, "--context-max", 512, "--speculate",
                  0, "--wait")
        used = {rank["host"] for rank in lab.json("replicas")[0]["ranks"]}
        if len(used) != (1 if gbit == ONE_HOST else 2):
            raise SystemExit(f"peers: the ranks of {tp} slices and {stages} stages are on {sorted(used)}")
        before = {host: sent_bytes(lab, host) for host in used}
        command = ["ip", "netns", "exec", lab.ns("c"), os.path.join(m.BIN, "bench-serve"),
                   "--endpoint", "10.97.0.1:7001", "--clients", str(streams), "--requests", str(3 * streams),
                   "--prompt", str(PROMPT), "--gen", str(m.short(GEN))]
        told = m.lines_of(command)[0]
        if told["failed"]:
            raise SystemExit(f"peers: {told['failed']} of {told['requests']} requests failed")
        # The warming request counts too; a prompt's tokens cross the link as well.
        n_tokens = (3 * streams + 1) * (m.short(GEN) + PROMPT)
        return {"tokens_per_s": 1000 * streams / told["gap_ms_p50"],
                "kb_a_token": max(sent_bytes(lab, host) - before[host] for host in used) / n_tokens / 1e3}


def hosts(budget, _probe):
    """Two shaped hosts beside one."""
    if os.geteuid() != 0:
        yield m.missing("two hosts over TCP in namespaces, 1 and 10 Gbit/s", "needs root")
        return
    file, shapes = built.synthetic("Q4_0"), ((2, 1), (1, 2))
    for i, (tp, stages) in enumerate(shapes):
        budget.give(1 / (len(shapes) - i))
        got = m.alternate(budget, **{str(gbit): lambda gbit=gbit, tp=tp, stages=stages: one_run(file, tp, stages, gbit)
                                     for gbit in (ONE_HOST, 10, 1)})
        one = got[str(ONE_HOST)]["tokens_per_s"]
        what = f"tp {tp}" if stages == 1 else f"stages {stages}, {stages} streams"
        label = f"1 B Q4_0, {what} × 1 thread, gen {GEN}"
        formula_kb = link_ms(file, tp, stages, 1) * GBIT_BYTES / 1e6
        bound = [1 / (1 / rate + link_ms(file, tp, stages, 1) / 1e3) for rate in one]
        note = (f"{m.number(got['1']['kb_a_token'])} kB a token left a host, prompts included; "
                f"the formula: {formula_kb:.3g}")
        yield m.row(f"{label}, 10 Gbit/s", got["10"]["tokens_per_s"], one, "ours, 1 host", 0.85)
        yield m.row(f"{label}, 1 Gbit/s", got["1"]["tokens_per_s"], bound, "1 host and the formula's bytes", 0.9,
                    note=note)
