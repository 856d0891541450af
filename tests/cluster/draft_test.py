"""A draft model in a cluster: the texts are those without one, greedy and sampled, also when the leader that holds it dies;
where steps are slow it saves most of them; a draft model with other tokens is refused by name. The model drafts for itself,
which is as right as a draft model can be; what makes it worth its cost are steps that are slowed down."""
import os
import unittest

from harness import MODEL, ROOT, SLOWLY, Cluster, read_results, texts, wait_for, write_jobs

ITEMS = 6
SHAPE = ("--tp", 2, "--stages", 1)


class Draft(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--replicas", 1, *SHAPE, "--draft-model", MODEL)
        cls.cluster.__enter__()
        cls.addClassCleanup(cls.cluster.__exit__, None, None, None)
        cls.file = os.path.join(cls.cluster.dir, "jobs.jsonl")
        write_jobs(cls.file, ITEMS, max_tokens=40, temperature=0.8)
        cls.started, = cls.cluster.replicas()
        cls.from_the_start = cls.run_job()
        cls.cluster.shoal("deploy", "smol", "--model", MODEL, *SHAPE, "--wait")
        cls.undisturbed = cls.run_job()
        cls.before, = cls.cluster.replicas()
        cls.cluster.shoal("deploy", "smol", "--model", MODEL, "--draft-model", MODEL, *SHAPE, "--wait")

    @classmethod
    def run_job(cls):
        out = os.path.join(cls.cluster.dir, "out.jsonl")
        cls.cluster.shoal("submit", cls.file, "--out", out)
        return texts(read_results(out))

    def setUp(self):
        self.addCleanup(self.cluster.arm, "")

    def test_a_change_of_the_draft_model_alone_reaches_the_replica(self):
        now, = self.cluster.replicas()
        self.assertEqual(self.from_the_start, self.undisturbed)
        self.assertEqual(self.started["draft_digest"], now["draft_digest"])
        self.assertEqual(self.before["draft_digest"], "")
        self.assertRegex(now["draft_digest"], r"^sha256:[0-9a-f]{64}$")
        self.assertEqual(now["text_identity"], self.before["text_identity"])
        self.assertGreater(now["epoch"], self.before["epoch"])

    def test_slow_steps_are_saved_and_the_texts_are_the_same(self):
        self.cluster.arm(SLOWLY)
        self.run_job()  # what steps cost now is learnt from some dozens
        before, = self.cluster.replicas()
        self.assertEqual(self.run_job(), self.undisturbed)
        self.cluster.arm("")
        # What the leader counts is shown a little later.
        tokens = sum(len(item[4]) for item in self.undisturbed)
        now = wait_for(lambda: next((one for one in self.cluster.replicas()
                                     if one["tokens_produced"] >= before["tokens_produced"] + tokens), None), 10, "counts")
        steps = now["steps"] - before["steps"]
        print(f"{steps} steps for {ITEMS} texts of up to 40 tokens")
        self.assertLess(steps, 30)

    def test_the_leader_may_die_with_it(self):
        leader = next(rank for rank in self.cluster.ranks() if rank["rank"] == 0)
        out = os.path.join(self.cluster.dir, "killed.jsonl")
        self.cluster.arm(SLOWLY)
        process = self.cluster.start("submit", self.file, "--out", out)
        wait_for(lambda: self.cluster.running() >= 2, 60, "sequences to run")
        self.cluster.kill(leader["pid"])
        self.cluster.arm("")
        stdout, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, stdout + stderr)
        self.assertEqual(texts(read_results(out)), self.undisturbed)
        wait_for(self.cluster.active, 60, "the replica to be active")

    def test_other_tokens_are_refused_by_name(self):
        other = os.path.join(ROOT, "tests/golden/gguf-llama-f32/model.gguf")
        done = self.cluster.shoal("deploy", "smol", "--model", MODEL, "--draft-model", other, *SHAPE, check=False)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("has the tokenizer of the model that it drafts for", done.stderr)
        done = self.cluster.shoal("deploy", "smol", "--model", MODEL, "--draft-model", MODEL, "--speculate", 0, *SHAPE,
                                  check=False)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("draft_path", done.stderr)


if __name__ == "__main__":
    unittest.main()
