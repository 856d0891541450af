"""What the commands promise to scripts: lost output is a failure, every command takes -o, a dead coordinator costs no time,
the environment means one thing, and a slip in --data makes nothing. One real cluster serves all of it."""
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import unittest

from harness import BIN, MODEL, ROOT, Cluster, wait_for

SHOAL = os.path.join(BIN, "shoal")
COMMANDS = ("up", "down", "status", "run", "submit", "jobs list", "jobs get", "jobs watch", "jobs results", "jobs cancel",
            "jobs delete", "deploy", "undeploy", "scale", "drain", "hosts", "replicas", "adopt", "tokenize", "detokenize",
            "render", "eval", "bench", "profile", "inspect", "plan", "seal", "verify", "version")


def environment(**more):
    """Without what the tests themselves are told by."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")} | more


def shoal(*args, env=None, **more):
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60, **more}
    return subprocess.run([SHOAL, *map(str, args)], env=env or environment(), check=False, **more)


class Alone(unittest.TestCase):
    """What needs no cluster."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="shoal-commands-")
        self.addCleanup(shutil.rmtree, self.dir)

    def lost(self, *args, **more):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = shoal(*args, stdout=full, **more)
        self.assertEqual(done.returncode, 1, f"{args}: {done.stderr}")
        self.assertIn("output was lost: No space left on device", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_output_that_is_lost_is_a_failure(self):
        self.lost("version")
        self.lost("help")
        self.lost("eval", "--help")
        self.lost("tokenize", "--model", MODEL, input="a line\n")

    def test_every_command_takes_o_and_every_help_names_the_environment(self):
        listed = [line[2:16].strip() for line in shoal("help").stdout.splitlines() if line.startswith("  ")]
        self.assertEqual(sorted(listed), sorted(COMMANDS), "the list above is of all commands")
        for command in COMMANDS:
            words = shoal(*command.split(), "--help").stdout
            self.assertRegex(words, r"(?m)^  -o table\|json {16}\S", command)
            self.assertIn("can be given as SHOAL_<OPTION> in the environment", words, command)
            for line in words.splitlines():
                option = re.match(r"  (-\S+(?: \S+)?) +", line)
                if option and len(option[1]) <= 28:
                    self.assertEqual(option.end(), 31, f"{command}: help begins in one column: {line}")

    def test_tokens_and_templates_come_as_json_for_lines_of_text(self):
        done = shoal("tokenize", "--model", MODEL, "-o", "json", input="Hello\n")
        ids = json.loads(done.stdout)["ids"]
        plain = shoal("tokenize", "--model", MODEL, input="Hello\n").stdout
        self.assertEqual(plain.split(), [str(one) for one in ids])
        done = shoal("detokenize", "--model", MODEL, "-o", "json", input=plain)
        self.assertEqual(json.loads(done.stdout), {"decoded": "Hello"})
        conversation = '{"messages": [{"role": "user", "content": "Hi"}]}\n'
        rendered = shoal("render", "--model", MODEL, "-o", "json", input=conversation)
        self.assertEqual(json.loads(rendered.stdout)["rendered"],
                         shoal("render", "--model", MODEL, input=conversation).stdout)
        self.assertEqual(shoal("tokenize", "--model", MODEL, "-o", "yaml", input="").returncode, 2)

    def test_a_slip_in_data_is_named_and_makes_nothing(self):
        slip = os.path.join(self.dir, "no", "such")
        for command in (["status"], ["down"], ["run", "Hello"], ["jobs", "list"]):
            done = shoal(*command, "--data", slip)
            self.assertEqual(done.returncode, 3, command)
            self.assertIn(f"--data: {slip} is no cluster's directory", done.stderr)
        self.assertEqual(os.listdir(self.dir), [])
        # A directory that is there, or the default one: there, no cluster is up.
        self.assertEqual(shoal("status", "--data", self.dir).returncode, 6)
        home = os.path.join(self.dir, "home")
        self.assertEqual(shoal("status", env=environment(XDG_STATE_HOME=home)).returncode, 6)
        self.assertEqual(os.listdir(self.dir), [])

    def test_a_store_that_is_none_is_wrong_usage_without_a_cluster(self):
        done = shoal("adopt", "foo", "--data", self.dir)
        self.assertEqual(done.returncode, 2)
        self.assertIn("write etcd or redis", done.stderr)

    def test_a_cluster_says_that_it_is_ready_and_that_it_is_down(self):
        data = os.path.join(self.dir, "cluster")
        up = shoal("up", "--detach", "--data", data, "-o", "json")
        try:
            self.assertRegex(up.stderr, r"\Aready after \d+\.\d\d s: coordinators( 127\.0\.0\.1:\d+){2}, data " + data)
            content = json.loads(up.stdout)
            self.assertEqual((len(content["coordinators"]), content["ready"]), (2, True))
        finally:
            down = shoal("down", "--data", data, "-o", "json")
        self.assertEqual((down.returncode, json.loads(down.stdout)), (0, {"data": data, "state": "down"}))
        self.assertEqual(shoal("down", "--data", data).returncode, 6)

    def test_a_sudo_that_refuses_is_not_called_a_network_fault(self):
        for name, line in (("id", "echo 1000"), ("sudo", "exit 1"), ("dpkg-query", "exit 1"), ("apt-get", "exit 1")):
            path = os.path.join(self.dir, name)
            with open(path, "w", encoding="utf-8") as script:
                script.write(f"#!/bin/sh\n{line}\n")
            os.chmod(path, 0o755)
        env = dict(os.environ, PATH=self.dir + ":" + os.environ["PATH"])
        done = subprocess.run(["bash", "-c", f". {ROOT}/deploy/common.sh; install_packages some-package"], env=env,
                              capture_output=True, text=True, timeout=20, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("sudo does not let you in", done.stderr)
        self.assertNotIn("network", done.stderr)


class Clustered(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--replicas", 1, "--tp", 1, "--stages", 1, "--context-max", 256)
        cls.cluster.__enter__()
        cls.addClassCleanup(cls.cluster.__exit__, None, None, None)
        cls.jobs = os.path.join(cls.cluster.dir, "jobs.jsonl")
        with open(cls.jobs, "w", encoding="utf-8") as file:
            file.write('{"prompt": "The capital of France is", "max_tokens": 4}\n' * 3)

    def submit(self, key):
        return self.cluster.shoal("submit", self.jobs, "--key", key, "--wait", "-o", "json")

    def test_output_that_is_lost_is_a_failure(self):
        job = json.loads(self.submit("lost").stdout)["id"]
        for command in (["status"], ["jobs", "list", "-o", "json"], ["jobs", "results", job], ["run", "Hello"],
                        ["run", "Hello", "-o", "json"]):
            with open("/dev/full", "w", encoding="utf-8") as full:
                done = shoal(*command, "--data", self.cluster.dir, stdout=full)
            self.assertEqual(done.returncode, 1, command)
            self.assertIn("output was lost", done.stderr, command)

    def test_nobody_reading_ends_the_answer(self):
        """Well before its end: 200 tokens would be produced for a reader."""
        ends = os.pipe()
        os.close(ends[0])
        done = shoal("run", "Tell a long story.", "--max-tokens", 200, "--data", self.cluster.dir, stdout=ends[1])
        os.close(ends[1])
        self.assertEqual(done.returncode, 1)
        self.assertIn("output was lost: Broken pipe", done.stderr)
        self.assertNotIn("tok/s", done.stderr)

    def test_a_new_kv_capacity_is_waited_for(self):
        before, = self.cluster.replicas()
        self.cluster.shoal("deploy", "smol", "--model", MODEL, "--replicas", 1, "--tp", 1, "--stages", 1,
                           "--context-max", 256, "--kv-tokens-max", 1024, "--wait")
        after, = self.cluster.replicas()
        self.assertGreater(after["epoch"], before["epoch"])
        self.assertEqual((after["state"], after["kv_tokens_total"]), ("active", 1024))
        self.assertEqual(after["step_settings"],
                         {"chunk": 512, "speculate": 8, "prefix_cache": True, "whole_prompts": False})

    def test_guesses_the_cache_and_pieces_of_prompts_are_switched_and_no_text_changes(self):
        prompt = "Count: one, two, three, one, two, three, one, two, three, one, two," * 3
        told = ["--replicas", 1, "--tp", 1, "--stages", 1, "--context-max", 256]

        def ask():
            """The same twice: texts, steps that gave no token (less those that gave several), cached tokens."""
            before, = self.cluster.replicas()
            texts = [shoal("run", prompt, "--raw", "--max-tokens", 40, "--data", self.cluster.dir).stdout
                     for _ in range(2)]
            after, = self.cluster.replicas()
            change = {name: after[name] - before[name] for name in ("steps", "tokens_produced", "prefix_hit_tokens")}
            return texts, change["steps"] - change["tokens_produced"], change["prefix_hit_tokens"]

        self.cluster.shoal("deploy", "smol", "--model", MODEL, *told, "--wait")
        texts, more_steps, hits = ask()
        self.assertEqual(texts[0], texts[1])
        self.assertLess(more_steps, -10, "guesses that were right save steps")
        self.assertGreater(hits, 0)
        self.cluster.shoal("deploy", "smol", "--model", MODEL, *told, "--chunk", 16, "--speculate", 0,
                           "--no-prefix-cache", "--whole-prompts", "--wait")
        one, = self.cluster.replicas()
        self.assertEqual(one["step_settings"],
                         {"chunk": 16, "speculate": 0, "prefix_cache": False, "whole_prompts": True})
        again, more_steps, hits = ask()
        self.assertEqual((again, hits), (texts, 0))
        self.assertGreaterEqual(more_steps, 2 * 2, "each prompt came in three pieces at least")
        for wrong in (["--chunk", 8193], ["--speculate", 17]):
            self.assertEqual(shoal("deploy", "smol", "--model", MODEL, *wrong, "--data", self.cluster.dir).returncode, 2)
        self.cluster.shoal("deploy", "smol", "--model", MODEL, *told, "--wait")

    def test_a_replica_that_loads_says_how_far_it_is(self):
        self.cluster.arm("rank.load=stall:250@*")
        self.cluster.shoal("scale", "smol", "--replicas", 2)
        def loading():
            return [one for one in self.cluster.replicas() if one.get("loaded_percent", 0) > 0]
        one, = wait_for(loading, 30, "a percentage of loading")
        self.assertEqual((one["ordinal"], one["state"]), (1, "forming"))
        self.assertLess(one["loaded_percent"], 100)
        self.assertRegex(self.cluster.shoal("status").stdout, r"smol/1 +forming, [0-9]+ % loaded")
        self.cluster.arm("")
        wait_for(lambda: all(one["state"] == "active" for one in self.cluster.replicas()), 30, "two active replicas")
        self.assertFalse(any("loaded_percent" in one for one in self.cluster.replicas()))
        self.cluster.shoal("scale", "smol", "--replicas", 1, "--wait")

    def test_a_refused_coordinator_costs_no_time(self):
        with socket.socket() as refused:
            refused.bind(("127.0.0.1", 0))  # and does not listen
            where = [f"127.0.0.1:{refused.getsockname()[1]}", *self.cluster.endpoints()]
            began = time.monotonic()
            done = shoal("status", "--endpoint", ",".join(where))
            took = time.monotonic() - began
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertLess(took, 1)
            done = shoal("status", "--endpoint", where[0])
            self.assertEqual(done.returncode, 6)
            self.assertIn(f"no coordinator answers at {where[0]}", done.stderr)

    def test_the_environment_gives_a_path_and_a_deployment_by_different_names(self):
        more = environment(SHOAL_MODEL=MODEL, SHOAL_DATA=self.cluster.dir)
        self.assertEqual(shoal("run", "Hello", "--max-tokens", 2, env=more).returncode, 0)
        self.assertEqual(shoal("submit", self.jobs, "--wait", env=more).returncode, 0)
        done = shoal("run", "Hello", env=dict(more, SHOAL_DEPLOYMENT="absent"))
        self.assertEqual(done.returncode, 3)
        self.assertIn("absent", done.stderr)
        self.assertEqual(shoal("tokenize", env=more, input="Hello\n").stdout.split(), ["19556"])

    def test_a_job_of_an_earlier_time_has_no_rate(self):
        first, again = self.submit("twice"), self.submit("twice")
        self.assertEqual(json.loads(first.stdout)["id"], json.loads(again.stdout)["id"])
        self.assertIn("tok/s", first.stderr)
        self.assertNotIn("tok/s", again.stderr)
        self.assertIn("submitted earlier", again.stderr)

    def test_a_deleted_job_is_told_as_json(self):
        job = json.loads(self.submit("delete").stdout)["id"]
        self.assertEqual(self.cluster.json("jobs", "delete", job), {"id": job, "state": "deleted"})


if __name__ == "__main__":
    unittest.main(verbosity=2)
