"""Two hosts: each agent in a network namespace of its own, joined by a bridge in a third where the
control plane runs; activations travel over UCX on TCP. Needs root. The namespaces, and everything in
them, are made and removed here."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from harness import BIN, MODEL, SLOWLY, read_results, texts, wait_for, write_jobs


def run(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


class Lab:
    """Namespaces c (control), a and b; 10.97.0.1, .2 and .3 on one bridge."""

    def __init__(self):
        self.tag = f"sh{os.getpid() % 100000}"
        self.dir = tempfile.mkdtemp(prefix="shoal-hosts-")
        self.processes = {}
        self.env = dict(os.environ, SHOAL_FAILPOINTS="file:" + os.path.join(self.dir, "failpoints"))
        self.arm("")
        self.addresses = {"c": "10.97.0.1", "a": "10.97.0.2", "b": "10.97.0.3"}

    def arm(self, text):
        path = os.path.join(self.dir, "failpoints")
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def ns(self, host):
        return f"{self.tag}{host}"

    def __enter__(self):
        for host in self.addresses:
            run("ip", "netns", "add", self.ns(host))
            run("ip", "-n", self.ns(host), "link", "set", "lo", "up")
        run("ip", "-n", self.ns("c"), "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.ns("c"), "addr", "add", "10.97.0.1/24", "dev", "br0")
        run("ip", "-n", self.ns("c"), "link", "set", "br0", "up")
        for host in ("a", "b"):
            run("ip", "-n", self.ns(host), "link", "add", "eth0", "type", "veth", "peer", "name", f"port{host}",
                "netns", self.ns("c"))
            run("ip", "-n", self.ns("c"), "link", "set", f"port{host}", "master", "br0", "up")
            run("ip", "-n", self.ns(host), "addr", "add", self.addresses[host] + "/24", "dev", "eth0")
            run("ip", "-n", self.ns(host), "link", "set", "eth0", "up")
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            for name in sorted(os.listdir(self.dir)):
                if name.endswith(".log") and name not in ("etcd.log", "redis.log"):
                    with open(os.path.join(self.dir, name), encoding="utf-8", errors="replace") as log:
                        print(f"--- {name}\n" + "".join(log.readlines()[-40:]), file=sys.stderr)
        for process in reversed(list(self.processes.values())):
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for host in self.addresses:
            run("ip", "netns", "del", self.ns(host), check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self, name, host, *command):
        log = open(os.path.join(self.dir, name + ".log"), "ab")
        self.processes[name] = subprocess.Popen(["ip", "netns", "exec", self.ns(host), *command], stdout=log,
                                                stderr=log, env=self.env, stdin=subprocess.DEVNULL)
        log.close()

    def start_cluster(self, memory, model=MODEL, agents=("a", "b")):
        data = self.dir
        clients, peers = "http://10.97.0.1:2379", "http://10.97.0.1:2380"
        self.start("etcd", "c", "etcd", "--name=x", f"--data-dir={data}/etcd", f"--listen-client-urls={clients}",
                   f"--advertise-client-urls={clients}", f"--listen-peer-urls={peers}",
                   f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=x={peers}", "--log-level=warn")
        os.makedirs(f"{data}/redis")
        self.start("redis", "c", "redis-server", "--bind", "10.97.0.1", "--protected-mode", "no", "--port", "6379",
                   "--dir", f"{data}/redis", "--appendonly", "yes", "--appendfsync", "always", "--save", "",
                   "--maxmemory-policy", "noeviction")
        stores = ["--etcd=http://10.97.0.1:2379", "--cluster=lab"]
        for i in (1, 2):
            os.makedirs(f"{data}/c{i}")
            self.start(f"coordinator-{i}", "c", f"{BIN}/shoal-coordinator", f"--id=c{i}", f"--listen=10.97.0.1:700{i}",
                       "--redis=redis://10.97.0.1:6379", f"--data={data}/c{i}", *stores)
        for host in agents:
            os.makedirs(f"{data}/{host}")
            self.start(f"agent-{host}", host, f"{BIN}/shoal-worker", "agent", f"--host-id={host}",
                       f"--address={self.addresses[host]}", f"--models={model}", f"--data={data}/{host}",
                       f"--memory={memory}", "--threads=1", *stores)

    def shoal(self, *args, check=True, timeout=180):
        command = ["ip", "netns", "exec", self.ns("c"), f"{BIN}/shoal", *map(str, args), "--endpoint",
                   "10.97.0.1:7001,10.97.0.1:7002"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def json(self, *args):
        return json.loads(self.shoal(*args, "-o", "json").stdout)

    def cut(self, on):
        """Cuts (or mends) the link between a and b; both still reach the control plane."""
        for host, other in (("a", "b"), ("b", "a")):
            run("ip", "netns", "exec", self.ns(host), "iptables", "-A" if on else "-D", "OUTPUT", "-d",
                self.addresses[other], "-j", "DROP")

    def log(self, name):
        with open(os.path.join(self.dir, name + ".log"), encoding="utf-8", errors="replace") as log:
            return log.read()


class TwoHosts(unittest.TestCase):
    def setUp(self):
        if os.geteuid() != 0:
            # Where everything is to be shown, what is left out is a failure.
            leave = self.fail if os.environ.get("SHOAL_REQUIRE_ALL") else self.skipTest
            leave("network namespaces need root: run the tests as root")

    def check_shape(self, tp, stages):
        with Lab() as lab:
            # One rank's share of the model fits a host, the whole does not.
            lab.start_cluster(memory="260M")
            lab.shoal("deploy", "smol", "--model", MODEL, "--tp", tp, "--stages", stages, "--context-max", 512,
                      "--wait")
            ranks = lab.json("replicas")[0]["ranks"]
            self.assertEqual({rank["host"] for rank in ranks}, {"a", "b"}, ranks)
            jobs = os.path.join(lab.dir, "jobs.jsonl")
            write_jobs(jobs, 16, max_tokens=32, temperature=0.8)
            lab.shoal("submit", jobs, "--out", jobs + ".out")
            undisturbed = texts(read_results(jobs + ".out"))
            self.check_cut(lab, jobs, undisturbed)
            return undisturbed

    def check_cut(self, lab, jobs, undisturbed):
        marks = {name: len(lab.log(name)) for name in ("agent-a", "agent-b")}
        command = ["ip", "netns", "exec", lab.ns("c"), f"{BIN}/shoal", "submit", jobs, "--out", jobs + ".cut",
                   "--endpoint", "10.97.0.1:7001,10.97.0.1:7002"]
        lab.arm(SLOWLY)  # so that the job lasts until the link is cut
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: sum(r["running"] for r in lab.json("replicas")) >= 4, 60, "sequences to run")
        lab.cut(True)
        cut_at = time.monotonic()
        try:
            def named():
                fresh = [lab.log(name)[mark:] for name, mark in marks.items()]
                return any("rank" in text and "lost" in text for text in fresh)
            wait_for(named, 2.0, "an error that names the lost rank")
            print(f"the cut was named after {time.monotonic() - cut_at:.2f} s", file=sys.stderr)
        finally:
            lab.cut(False)
            lab.arm("")
        out, err = process.communicate(timeout=180)
        self.assertEqual(process.returncode, 0, out + err)
        self.assertEqual(texts(read_results(jobs + ".cut")), undisturbed)

    def test_stages_across_hosts_and_slices_across_hosts_give_the_same_texts(self):
        self.assertEqual(self.check_shape(tp=1, stages=2), self.check_shape(tp=2, stages=1))


if __name__ == "__main__":
    unittest.main(verbosity=2)
