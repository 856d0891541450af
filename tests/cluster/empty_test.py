"""A cluster without any model: it runs, says that its host offers none, and serves what is deployed by path or put into
its folder, without a restart of anything."""
import os
import shutil
import time
import unittest

from harness import MODEL, Cluster, wait_for


class Empty(unittest.TestCase):
    def serve(self, cluster, model, **where):
        """Deploys the model file and has it answer; then takes it back."""
        cluster.shoal("deploy", "smol", "--model", model, "--context-max", 256, "--wait", **where)
        self.assertIn("Paris", cluster.shoal("run", "--raw", "The capital of France is", "--max-tokens", 5).stdout)
        cluster.shoal("undeploy", "smol")

    def offered(self, cluster):
        hosts = cluster.json("hosts")
        return [name for host in hosts for name in host["models"]] if hosts else None

    def test_a_host_without_a_model_runs_and_serves_one_that_comes_later(self):
        with Cluster(model=None) as cluster:
            worker = cluster.pid("worker")
            wait_for(lambda: self.offered(cluster) == [], 20, "the host, without a model")
            self.assertRegex(cluster.shoal("status").stdout, r"local +ready .*no model")
            self.assertEqual(cluster.shoal("run", "Hello", check=False).returncode, 3)

            # By a path, such as a user types it.
            here, name = os.path.split(MODEL)
            self.serve(cluster, name, cwd=here)
            stem = name.removesuffix(".gguf")
            self.assertEqual(self.offered(cluster), [stem])
            self.assertRegex(cluster.shoal("status").stdout, r"local +ready .*1 model")
            self.serve(cluster, MODEL)
            self.assertEqual(self.offered(cluster), [stem], "the same file is not offered twice")
            os.unlink(os.path.join(cluster.dir, "models", name))
            wait_for(lambda: self.offered(cluster) == [], 20, "the model to be offered no more")

            # Put into the folder, with a pause in the middle of the copy.
            path = os.path.join(cluster.dir, "models", "copied.gguf")
            with open(MODEL, "rb") as source, open(path, "wb") as copy:
                copy.write(source.read(1 << 20))
                copy.flush()
                time.sleep(2.5)
                self.assertEqual(self.offered(cluster), [], "half a model is none")
                shutil.copyfileobj(source, copy, 1 << 20)
            wait_for(lambda: self.offered(cluster) == ["copied"], 30, "the copied model")
            self.serve(cluster, path)
            self.assertEqual(cluster.pid("worker"), worker, "the worker was never started again")


if __name__ == "__main__":
    unittest.main(verbosity=2)
