"""Every kind of model through the whole cluster: tiny recorded models, as Hugging Face directories and GGUF files, on
2 stages x 2 slices give the recorded greedy ids of Hugging Face transformers, also when a rank is killed in the
middle; a sealed model that was changed is not served; a quantized one is another text; a directory that is put
under --models is offered when it is whole."""
import json
import os
import shutil
import struct
import unittest

from harness import Cluster, ROOT, SLOWLY, alive, read_results, wait_for

GOLDEN = os.path.join(ROOT, "tests/golden")
FAMILIES = ["qwen3-moe", "deepseek-v3-fp8", "gpt-oss-mxfp4", "gemma3-text", "gguf-deepseek2-lite-f16", "deepseek-v4"]
N_PROMPTS = 3
SHAPE = ("--tp", 2, "--stages", 2, "--activations", "f32", "--context-max", 256)


def model_of(family):
    """The model's file or directory."""
    path = os.path.join(GOLDEN, family)
    return os.path.join(path, "model.gguf") if family.startswith("gguf-") else path


def recorded(family):
    """[(ids of a prompt, ids of its greedy continuation)]"""
    with open(os.path.join(GOLDEN, family, "golden.safetensors"), "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()

    def ids(name):
        begin, end = header[name]["data_offsets"]
        return list(struct.unpack(f"<{(end - begin) // 4}i", data[begin:end]))
    return [(ids(f"p{i}.input_ids"), ids(f"p{i}.greedy_ids")) for i in range(N_PROMPTS)]


def copy_model(family, to):
    """Only what is part of the model."""
    os.makedirs(to, exist_ok=True)
    for name in os.listdir(os.path.join(GOLDEN, family)):
        if not name.startswith("golden."):
            shutil.copy(os.path.join(GOLDEN, family, name), to)
    return to


class Families(unittest.TestCase):
    """One cluster; each family is a deployment of its own."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--threads", 2, model=None)
        cls.cluster.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None, None, None)

    def deploy(self, name, model, *more):
        self.cluster.shoal("deploy", name, "--model", model, *SHAPE, *more, "--wait", "--timeout", "60s")
        self.addCleanup(self.cluster.shoal, "undeploy", name, check=False)

    def write_job(self, prompts):
        path = os.path.join(self.cluster.dir, "job.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for ids, greedy in prompts:
                file.write(json.dumps({"prompt": ids, "max_tokens": len(greedy), "ignore_eos": True}) + "\n")
        return path

    def answers(self, name, prompts):
        """The results of a job of these prompts."""
        out = os.path.join(self.cluster.dir, "out.jsonl")
        self.cluster.shoal("submit", self.write_job(prompts), "--model", name, "--out", out, check=False)
        return self.results(out)

    def results(self, out):
        results = read_results(out)
        for result in results:
            self.assertEqual(result["status"], "ok", result)
        return results

    def test_each_family_writes_the_recorded_text(self):
        for family in FAMILIES:
            with self.subTest(family):
                prompts = recorded(family)
                self.deploy(family, model_of(family))
                for result, (_, greedy) in zip(self.answers(family, prompts), prompts, strict=True):
                    self.assertEqual(result["ids"], greedy)
                self.cluster.shoal("undeploy", family)

    def test_a_rank_that_is_killed_in_the_middle_changes_no_text(self):
        for family, victim in (("deepseek-v3-fp8", 3), ("gguf-deepseek2-lite-f16", 0)):
            with self.subTest(family):
                prompts = recorded(family)
                self.deploy(family, model_of(family))
                out = os.path.join(self.cluster.dir, "killed.jsonl")
                self.cluster.arm(SLOWLY)
                job = self.cluster.start("submit", self.write_job(prompts), "--model", family, "--out", out)
                rank = [rank for rank in self.cluster.ranks() if rank["rank"] == victim][0]
                wait_for(lambda: self.produced(family) >= 12, 30, "some tokens")
                self.cluster.kill(rank["pid"])
                wait_for(lambda: not alive(rank["pid"]), 10, "its death")
                self.assertIsNone(job.poll(), "the job was over before the rank died")
                self.cluster.arm("")
                job.communicate(timeout=60)
                self.assertEqual([r["ids"] for r in self.results(out)], [greedy for _, greedy in prompts])
                pids = [rank["pid"] for rank in self.cluster.ranks()]
                self.assertNotIn(rank["pid"], pids)
                self.cluster.shoal("undeploy", family)

    def produced(self, deployment):
        return sum(r["tokens"] for r in self.cluster.replicas() if r["replica"].startswith(deployment + "/"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
