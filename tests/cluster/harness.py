"""Starts real clusters for the scenarios in this folder: `shoal up` in a private directory, the real
model, real etcd and Redis. What the scenarios need to kill, they find here by process id."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("SHOAL_BIN_DIR", os.path.join(ROOT, "build/release/bin"))
MODEL = os.environ.get("SHOAL_MODEL", os.path.join(ROOT, ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"))


# Each step of a batch takes at least so long: a job then lasts long enough on any machine for something to die in the
# middle of it.
SLOWLY = "rank.step.begin=stall:40@*"


def wait_for(condition, timeout_s, what):
    """Polls until condition() is true and returns its value; fails naming what was waited for."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {timeout_s} s in vain for {what}"
        time.sleep(0.02)


def alive(pid):
    """Whether the process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """One cluster of `shoal up`; a context manager."""

    def __init__(self, *options, env=None, data=None, model=MODEL):
        self.dir = data or tempfile.mkdtemp(prefix="shoal-cluster-")
        self.keep = data is not None
        self.failpoints = os.path.join(self.dir, "failpoints")
        self.arm("")
        self.options = ("--model", model, "--name", "smol", *options) if model else options
        self.env = dict(os.environ, SHOAL_FAILPOINTS="file:" + self.failpoints, **(env or {}))
        for name in ("SHOAL_DATA", "SHOAL_ENDPOINT", "SHOAL_MODEL"):
            self.env.pop(name, None)

    def __enter__(self):
        self.shoal("up", "--detach", *self.options, timeout=180)
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            self.show_logs()
        self.shoal("down", check=False)
        with contextlib.suppress(Exception):
            supervisor = self.file()["supervisor"]
            os.kill(supervisor, signal.SIGKILL)
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    def show_logs(self):
        logs = os.path.join(self.dir, "logs")
        for name in sorted(os.listdir(logs)) if os.path.isdir(logs) else []:
            if name in ("etcd.log", "redis.log"):
                continue
            with open(os.path.join(logs, name), encoding="utf-8", errors="replace") as log:
                print(f"--- {name}\n" + "".join(log.readlines()[-40:]), file=sys.stderr)

    def shoal(self, *args, check=True, timeout=120, env=None, cwd=None):
        command = [os.path.join(BIN, "shoal"), *map(str, args)]
        if args[0] not in ("version", "eval", "bench", "tokenize", "detokenize", "seal", "verify"):
            command += ["--data", self.dir]
        done = subprocess.run(command, env=env or self.env, cwd=cwd, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            said = done.stdout[-2000:] + done.stderr[-2000:]
            raise AssertionError(f"{' '.join(command)} gave {done.returncode}:\n{said}")
        return done

    def start(self, *args):
        """A command in the background."""
        return subprocess.Popen([os.path.join(BIN, "shoal"), *map(str, args), "--data", self.dir], env=self.env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def json(self, *args):
        return json.loads(self.shoal(*args, "-o", "json").stdout)

    def file(self):
        with open(os.path.join(self.dir, "cluster.json"), encoding="utf-8") as file:
            return json.load(file)

    def pid(self, name):
        return wait_for(lambda: self.file()["pids"].get(name), 10, f"a process {name}")

    def endpoints(self):
        return self.file()["coordinators"]

    def elected(self):
        """(name of the process, its endpoint) of the elected coordinator."""
        def find():
            for i, endpoint in enumerate(self.endpoints()):
                done = self.shoal("status", "--endpoint", endpoint, "-o", "json", check=False)
                if done.returncode == 0 and json.loads(done.stdout)["elected"]:
                    return f"coordinator-{i + 1}", endpoint
            return None
        return wait_for(find, 20, "an elected coordinator")

    def replicas(self):
        return self.json("replicas")

    def ranks(self, replica=None):
        return [rank for one in self.replicas() if replica in (None, one["replica"]) for rank in one["ranks"]]

    def running(self, *where):
        """Sequences in the batches of all replicas."""
        done = self.shoal("replicas", "-o", "json", *where, check=False)
        return sum(one["running"] for one in json.loads(done.stdout)) if done.returncode == 0 else 0

    def arm(self, text):
        """Replaces the list of armed fail points in all processes of the cluster."""
        with open(self.failpoints + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(self.failpoints + ".new", self.failpoints)

    def arm_kill(self, points, *victims):
        """Arms points that kill, waits until all the victims are dead, and disarms."""
        self.arm(points)
        wait_for(lambda: not any(map(alive, victims)), 60, f"{points} to act")
        self.arm("")

    def kill(self, pid, number=signal.SIGKILL):
        os.kill(pid, number)

    def active(self):
        done = self.shoal("replicas", "-o", "json", check=False)
        return done.returncode == 0 and all(one["state"] == "active" for one in json.loads(done.stdout))


def write_jobs(path, n, max_tokens=40, temperature=None, seed=1):
    """A job file of n varied prompts; with a temperature every second line is sampled, each with a
    seed of its own, and the others are greedy."""
    subjects = ["the sea", "a clock", "rust", "bread", "the moon", "a letter", "winter", "a bridge"]
    verbs = ["Describe", "Write a short poem about", "Name two facts about", "Tell a story about"]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            line = {"custom_id": f"item-{i}", "max_tokens": max_tokens - i % 7, "messages": [
                {"role": "user", "content": f"{verbs[i % 4]} {subjects[i // 4 % 8]} number {i}."}]}
            if temperature is not None and i % 2:
                line.update(temperature=temperature, seed=seed + i)
            file.write(json.dumps(line) + "\n")


def read_results(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def texts(results):
    """What must be equal between a disturbed and an undisturbed run."""
    return [(r["index"], r["custom_id"], r["status"], r.get("text"), tuple(r.get("ids", ())), r.get("finish_reason"))
            for r in results]
