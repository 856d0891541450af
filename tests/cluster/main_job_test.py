"""The main job, end to end: a batch job over real processes gives the texts of one process, streams
answer, jobs can be listed, cancelled and deleted, and errors say what is wrong."""
import json
import os
import subprocess
import unittest

from harness import BIN, Cluster, MODEL, read_results, wait_for, write_jobs, texts


class MainJob(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--replicas", 1, "--tp", 2, "--stages", 2)
        cls.cluster.__enter__()
        cls.jobs = os.path.join(cls.cluster.dir, "jobs.jsonl")
        write_jobs(cls.jobs, 12, max_tokens=24)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None, None, None)

    def submit(self, *args):
        out = os.path.join(self.cluster.dir, "out.jsonl")
        self.cluster.shoal("submit", self.jobs, "--out", out, *args)
        return read_results(out)

    def test_a_job_gives_one_result_a_line_in_order(self):
        results = self.submit()
        self.assertEqual([r["index"] for r in results], list(range(12)))
        self.assertEqual([r["custom_id"] for r in results], [f"item-{i}" for i in range(12)])
        for result in results:
            self.assertEqual(result["status"], "ok", result)
            self.assertTrue(result["ids"] and result["text_identity"])

    def test_the_same_job_gives_the_same_texts(self):
        self.assertEqual(texts(self.submit()), texts(self.submit()))

    def test_the_cluster_writes_what_one_process_writes(self):
        """The ids of a raw prompt equal `shoal eval --greedy` on one rank."""
        prompt = "The capital of France is"
        path = os.path.join(self.cluster.dir, "raw.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps({"prompt": prompt, "max_tokens": 24, "ignore_eos": True}) + "\n")
        out = path + ".out"
        self.cluster.shoal("submit", path, "--out", out)
        ids = read_results(out)[0]["ids"]
        tokenized = subprocess.run([os.path.join(BIN, "shoal"), "tokenize", "--model", MODEL, "--jsonl"], text=True,
                                   input=json.dumps({"text": prompt}) + "\n", capture_output=True, check=True)
        ids_in = path + ".ids"
        with open(ids_in, "w", encoding="utf-8") as file:
            json.dump([json.loads(tokenized.stdout)["ids"]], file)
        tensors = path + ".safetensors"
        self.cluster.shoal("eval", "--model", MODEL, "--ids", ids_in, "--out", tensors, "--greedy", 24, "--last")
        with open(tensors, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            begin, end = header["greedy.0"]["data_offsets"]
            data = file.read()[begin:end]
        greedy = [int.from_bytes(data[i:i + 4], "little") for i in range(0, len(data), 4)]
        self.assertEqual(ids, greedy)

    def test_a_prompt_is_answered_and_the_seed_decides_the_text(self):
        def run(seed):
            done = self.cluster.shoal("run", "Tell me about rain.", "--temperature", 1, "--seed", seed,
                                      "--max-tokens", 20)
            self.assertRegex(done.stderr, r"\d+ tokens, [\d.]+ tok/s, TTFT \d+ ms")
            return done.stdout
        first = run(5)
        self.assertEqual(first, run(5))
        self.assertNotEqual(first, run(6))

    def test_a_seed_that_was_printed_gives_the_text_again(self):
        def run(*more):
            return self.cluster.json("run", "Tell me about rain.", "--temperature", 1, "--max-tokens", 20, *more)
        first = run()
        self.assertTrue(0 <= first["seed"] < 2 ** 53)
        self.assertEqual(first["text"], run("--seed", first["seed"])["text"])
        self.assertNotEqual(first["text"], run()["text"])
        path = os.path.join(self.cluster.dir, "drawn.jsonl")
        line = {"prompt": "Tell me about rain.", "temperature": 1, "max_tokens": 20}
        for i in range(3):
            with open(path, "w", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.cluster.shoal("submit", path, "--out", path + ".out")
            result = read_results(path + ".out")[0]
            if i == 0:
                drawn = result
                self.assertTrue(0 <= drawn["seed"] < 2 ** 53)
            self.assertEqual(result["ids"], drawn["ids"])
            line["seed"] = drawn["seed"] if i == 0 else str(drawn["seed"])

    def test_a_shape_that_cannot_be_is_refused_at_once(self):
        for option in (("--tp", 16), ("--stages", 31), ("--tp", 12, "--stages", 30)):
            done = self.cluster.shoal("scale", *option, "--wait", check=False, timeout=20)
            self.assertEqual(done.returncode, 2, done.stderr)
        shown = self.cluster.json("status")["deployments"]
        self.assertEqual([(d["name"], d["replicas"], d["tp"], d["stages"]) for d in shown], [("smol", 1, 2, 2)])

    def test_the_same_key_and_file_are_the_same_job_and_another_file_is_refused(self):
        first = self.cluster.json("submit", self.jobs, "--key", "k1", "--wait")
        again = self.cluster.json("submit", self.jobs, "--key", "k1", "--wait")
        self.assertEqual(first["id"], again["id"])
        other = os.path.join(self.cluster.dir, "other.jsonl")
        write_jobs(other, 3)
        self.assertEqual(self.cluster.shoal("submit", other, "--key", "k1", check=False).returncode, 5)

    def test_jobs_can_be_listed_fetched_cancelled_and_deleted(self):
        long = os.path.join(self.cluster.dir, "long.jsonl")
        write_jobs(long, 40, max_tokens=400)
        job = self.cluster.json("submit", long)
        self.assertIn(job["id"], [j["id"] for j in self.cluster.json("jobs", "list")])
        wait_for(lambda: self.cluster.json("jobs", "get", job["id"])["running"] > 0, 60, "the job to run")
        self.assertEqual(self.cluster.json("jobs", "cancel", job["id"])["state"], "cancelled")
        wait_for(lambda: self.cluster.running() == 0, 30, "the cancelled items to leave the batch")
        results = self.cluster.shoal("jobs", "results", job["id"], "-o", "json").stdout.splitlines()
        self.assertEqual(len(results), 40)
        cancelled = [r for r in map(json.loads, results) if r["status"] == "cancelled"]
        self.assertTrue(cancelled)
        self.assertEqual({r["error"]["code"] for r in cancelled}, {"cancelled"})
        self.cluster.shoal("jobs", "delete", job["id"])
        self.assertEqual(self.cluster.shoal("jobs", "get", job["id"], check=False).returncode, 3)

    def test_what_is_wrong_is_named(self):
        path = os.path.join(self.cluster.dir, "bad.jsonl")
        for line, word in (('{"prompt": "a", "temperature": 9}', "temperature"), ('{"prompt": 3}', "prompt"),
                           ("{", "line 1"), ('{"custom_id": "x"}', "prompt"),
                           ('{"prompt": "a", "max_tokens": 0}', "max_tokens"),
                           ('{"prompt": "a", "colour": 1}', "colour")):
            with open(path, "w", encoding="utf-8") as file:
                file.write(line + "\n")
            done = self.cluster.shoal("submit", path, check=False)
            self.assertEqual(done.returncode, 2, line + done.stderr)
            self.assertIn(word, done.stderr)
        before = self.cluster.json("jobs", "list")
        self.assertEqual(self.cluster.shoal("submit", self.jobs, "--out", "/nope/r", check=False).returncode, 3)
        done = self.cluster.shoal("submit", self.cluster.dir, check=False)
        self.assertEqual((done.returncode, "is a directory" in done.stderr), (2, True), done.stderr)
        self.assertEqual(self.cluster.json("jobs", "list"), before)
        done = self.cluster.shoal("submit", self.jobs, "--model", "nobody", check=False)
        self.assertEqual(done.returncode, 3)
        self.assertIn("nobody", done.stderr)
        self.assertEqual(self.cluster.shoal("run", "hello " * 3000, check=False).returncode, 2)
        self.assertEqual(self.cluster.shoal("scale", "--replicas", 99999, check=False).returncode, 2)
        self.assertEqual(self.cluster.shoal("jobs", "get", "0" * 32, check=False).returncode, 3)


if __name__ == "__main__":
    unittest.main(verbosity=2)
