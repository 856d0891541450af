"""Ring and scale: while a job and a stream run, the deployment is scaled down, reshaped, and scaled
back: nothing fails and no text changes."""
import os
import signal
import unittest

from harness import SLOWLY, Cluster, read_results, texts, wait_for, write_jobs


class Scale(unittest.TestCase):
    def test_scaling_and_reshaping_under_load_changes_no_text(self):
        with Cluster("--replicas", 2, "--shapes", "0=2x1,1=1x3") as cluster:
            jobs = os.path.join(cluster.dir, "jobs.jsonl")
            write_jobs(jobs, 64, max_tokens=64, temperature=0.8)
            cluster.shoal("submit", jobs, "--out", jobs + ".undisturbed", timeout=300)
            undisturbed = texts(read_results(jobs + ".undisturbed"))
            prompt = ("run", "Tell me a very long story.", "--max-tokens", 400, "--temperature", 0.7, "--seed", 4)
            story = cluster.shoal(*prompt).stdout

            cluster.arm(SLOWLY)
            job = cluster.start("submit", jobs, "--out", jobs + ".out")
            stream = cluster.start(*prompt)
            wait_for(lambda: cluster.running() >= 8, 60, "sequences to run")
            cluster.shoal("scale", "--replicas", 1, "--wait")
            self.assertEqual((job.poll(), stream.poll()), (None, None), "nothing was under way when it was scaled")
            cluster.shoal("scale", "smol", "--tp", 3, "--stages", 1, "--wait")
            self.assertEqual([(r["tp"], r["stages"]) for r in cluster.replicas()], [(3, 1)])
            cluster.shoal("scale", "smol", "--replicas", 2, "--tp", 2, "--stages", 1, "--wait")
            cluster.arm("")
            for process in (job, stream):
                out, err = process.communicate(timeout=240)
                self.assertEqual(process.returncode, 0, out + err)
                if process is stream:
                    self.assertEqual(out, story)
            self.assertEqual(texts(read_results(jobs + ".out")), undisturbed)

    def test_a_worker_that_is_told_to_end_fails_nothing(self):
        """SIGTERM drains: running sequences end or move, new requests wait for the worker's successor."""
        with Cluster("--replicas", 1, "--tp", 2, "--stages", 1) as cluster:
            jobs = os.path.join(cluster.dir, "jobs.jsonl")
            write_jobs(jobs, 24, max_tokens=60, temperature=0.8)
            cluster.shoal("submit", jobs, "--out", jobs + ".undisturbed")
            cluster.arm(SLOWLY)
            job = cluster.start("submit", jobs, "--out", jobs + ".out")
            wait_for(lambda: cluster.running() >= 8, 60, "sequences to run")
            os.kill(cluster.pid("worker"), signal.SIGTERM)
            cluster.arm("")
            self.assertTrue(cluster.shoal("run", "Hello", "--max-tokens", 5).stdout.strip())
            out, err = job.communicate(timeout=120)
            self.assertEqual(job.returncode, 0, out + err)
            self.assertEqual(texts(read_results(jobs + ".out")), texts(read_results(jobs + ".undisturbed")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
