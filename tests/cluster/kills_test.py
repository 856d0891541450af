"""Kill anything: while a job of 64 items, half of them greedy and half sampled, runs on two replicas of different shape
(2 slices × 1 stage, 1 slice × 3 stages), one thing dies at a named point; the job ends, each item has exactly one
result, and every text is the one of the undisturbed run."""
import json
import os
import re
import shutil
import signal
import subprocess
import time
import unittest

from harness import BIN, MODEL, SLOWLY, Cluster, alive, read_results, texts, wait_for, write_jobs

ITEMS = 64
SHAPES = ("--replicas", 2, "--shapes", "0=2x1,1=1x3")


class Kills(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(*SHAPES)
        cls.cluster.__enter__()
        cls.addClassCleanup(cls.cluster.__exit__, None, None, None)
        cls.file = os.path.join(cls.cluster.dir, "jobs.jsonl")
        write_jobs(cls.file, ITEMS, max_tokens=40, temperature=0.8)
        cls.cluster.shoal("submit", cls.file, "--out", cls.file + ".undisturbed", timeout=300)
        cls.undisturbed = texts(read_results(cls.file + ".undisturbed"))

    def setUp(self):
        self.cluster.arm("")
        wait_for(self.cluster.active, 60, "both replicas to be active")

    def during_a_job(self, kill, running=8, endpoints=()):
        """Submits, waits until `running` sequences run, calls kill(), and checks the outcome. The coordinators are
        asked in the order of `endpoints`, if given."""
        out = os.path.join(self.cluster.dir, "out.jsonl")
        where = ("--endpoint", ",".join(endpoints)) if endpoints else ()
        self.cluster.arm(SLOWLY)
        process = self.cluster.start("submit", self.file, "--out", out, *where)
        try:
            wait_for(lambda: self.cluster.running(*where) >= running or process.poll() is not None, 60,
                     "sequences to run")
            self.assertIsNone(process.poll(), "the job ended before anything could be killed")
            kill()
            self.cluster.arm("")
            stdout, stderr = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.assertEqual(process.returncode, 0, stdout + stderr)
        results = read_results(out)
        self.assertEqual([r["index"] for r in results], list(range(ITEMS)))
        self.assertEqual(texts(results), self.undisturbed)

    def kill_rank(self, replica, stage, point="rank.step.begin"):
        ranks = [rank for rank in self.cluster.ranks(replica) if rank["stage"] == stage]
        pid = ranks[-1]["pid"]
        self.during_a_job(lambda: self.cluster.arm_kill(f"{point}%{pid}=kill@3", pid))

    def test_a_leader_with_two_slices_may_die(self):
        self.kill_rank("smol/0", 0)

    def test_a_rank_may_die_in_the_exchange(self):
        self.kill_rank("smol/0", 0, "rank.exchange")

    def test_the_first_stage_may_die(self):
        self.kill_rank("smol/1", 0, "leader.step")

    def test_the_middle_stage_may_die(self):
        self.kill_rank("smol/1", 1, "rank.layer")

    def test_the_middle_stage_may_die_in_its_part_of_the_head(self):
        self.kill_rank("smol/1", 1, "rank.head")

    def test_the_last_stage_may_die_after_sampling(self):
        self.kill_rank("smol/1", 2, "rank.sampled")

    def kill_coordinator(self, point):
        """The elected coordinator dies at a fail point while it holds the whole job: the other one stands still until
        it has claimed the items, since otherwise either may hold them all."""
        name, endpoint = self.cluster.elected()
        pid = self.cluster.pid(name)
        other = self.cluster.pid("coordinator-2" if name == "coordinator-1" else "coordinator-1")

        def kill():
            os.kill(other, signal.SIGCONT)
            self.cluster.arm_kill(f"{point}%{pid}=kill@2", pid)
        os.kill(other, signal.SIGSTOP)
        try:
            self.during_a_job(kill, endpoints=[endpoint] + [one for one in self.cluster.endpoints() if one != endpoint])
        finally:
            os.kill(other, signal.SIGCONT)

    def test_the_elected_coordinator_may_die(self):
        self.kill_coordinator("coordinator.step_output")

    def test_a_coordinator_may_die_before_it_commits(self):
        self.kill_coordinator("coordinator.before_commit")

    def test_a_coordinator_may_die_between_commit_and_reply(self):
        self.kill_coordinator("coordinator.after_commit")

    def kill_store(self, store, points):
        """The store dies when some process of the cluster passes a point; what supervises it starts it again."""
        pid = self.cluster.pid(store)
        self.during_a_job(lambda: self.cluster.arm_kill(points.format(pid=pid), pid))
        self.assertNotEqual(self.cluster.pid(store), pid)

    def test_redis_may_die_before_a_result_is_committed(self):
        self.kill_store("redis", "coordinator.before_commit=kill:{pid}@2")

    def test_redis_may_die_after_a_result_was_committed_and_others_are_on_their_way(self):
        self.kill_store("redis", "coordinator.after_commit=kill:{pid}@2")

    def test_etcd_may_die_while_leases_are_kept_alive(self):
        self.kill_store("etcd", "etcd.keepalive=kill:{pid}@1")

    def test_etcd_may_die_while_a_replica_is_planned_anew(self):
        victim = [rank["pid"] for rank in self.cluster.ranks("smol/1") if rank["stage"] == 1][0]
        self.kill_store("etcd", f"rank.layer%{victim}=kill@3;coordinator.plan=kill:{{pid}}")

    def test_etcd_may_stand_still_for_longer_than_every_lease(self):
        pid = self.cluster.pid("etcd")
        before = {one["replica"]: one["epoch"] for one in self.cluster.replicas()}

        def stop():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(12)
            os.kill(pid, signal.SIGCONT)
        self.during_a_job(stop)
        after = {one["replica"]: one["epoch"] for one in self.cluster.replicas()}
        self.assertEqual(before, after, "no replica may be dissolved because etcd stood still")

    def test_the_agent_may_die_and_no_rank_outlives_it(self):
        pid = self.cluster.pid("worker")
        ranks = [rank["pid"] for rank in self.cluster.ranks()]

        def kill():
            self.cluster.arm_kill(f"agent.beat%{pid}=kill@3", pid)
            wait_for(lambda: not any(map(alive, ranks)), 1, "the ranks to die with their agent")
        self.during_a_job(kill)

    def test_a_prompt_that_crashes_its_rank_ends_poisoned_and_harms_no_other(self):
        with open(self.file, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        lines[17]["messages"][0]["content"] += " \u2603"
        path = self.file + ".poison"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        # The ids of the snowman stand in no other prompt; a step that holds the last one aborts its rank.
        ids = json.loads(self.tokenize(" \u2603"))["ids"]
        prompts = [line["messages"][0]["content"] for n, line in enumerate(lines) if n != 17]
        others = {i for prompt in prompts for i in json.loads(self.tokenize(prompt))["ids"]}
        texts_ids = {i for row in self.undisturbed for i in row[4]}
        poison = [i for i in ids if i not in others | texts_ids]
        self.assertTrue(poison, ids)
        deaths_before = self.crashes()
        self.cluster.arm(f"rank.token.{poison[0]}=abort@*")
        out = path + ".out"
        self.cluster.shoal("submit", path, "--out", out, check=False, timeout=300)
        self.cluster.arm("")
        results = read_results(out)
        self.assertEqual(results[17]["status"], "error")
        self.assertEqual(results[17]["error"]["code"], "poisoned")
        # The ranks of both replicas die with their leaders, which have named the step's sequences.
        deaths = self.crashes() - deaths_before
        self.assertTrue(1 <= len(deaths) <= 2, deaths)
        rest = texts(results)
        del rest[17]
        expected = list(self.undisturbed)
        del expected[17]
        self.assertEqual(rest, expected)

    def tokenize(self, text):
        return subprocess.run([os.path.join(BIN, "shoal"), "tokenize", "--model", MODEL, "--jsonl"], text=True,
                              input=json.dumps({"text": text}) + "\n", capture_output=True, check=True).stdout

    def crashes(self):
        """(replica, epoch) of each formation that a crash has ended."""
        found = set()
        with open(os.path.join(self.cluster.dir, "logs", "worker.log"), encoding="utf-8", errors="replace") as log:
            for line in log:
                match = re.search(r" (\S+/\d+): epoch (\d+) failed: .*\(crashed\)$", line.rstrip())
                if match:
                    found.add((match[1], int(match[2])))
        return found


class EmptiedStores(unittest.TestCase):
    """A store that comes back empty in the middle of a job on the same two shapes is named and refused until it is
    adopted; serving goes on meanwhile."""

    def empty(self, cluster, store):
        pid = cluster.pid(store)
        os.kill(pid, signal.SIGSTOP)
        shutil.rmtree(os.path.join(cluster.dir, store))
        if store == "redis":
            os.makedirs(os.path.join(cluster.dir, store))
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: cluster.pid(store) != pid, 20, f"{store} to be started again")
        cluster.arm("")

    def refused_until_adopted(self, cluster, store, jobs):
        def refused():
            done = cluster.shoal("submit", jobs, check=False)
            return done.returncode == 6 and store in done.stderr.lower() and "adopt" in done.stderr.lower()
        wait_for(refused, 30, f"jobs to be refused naming {store}")
        self.assertTrue(cluster.shoal("run", "Hello", "--max-tokens", 5).stdout.strip(), "serving goes on")
        cluster.shoal("adopt", store)

    def start_job(self, cluster):
        jobs = os.path.join(cluster.dir, "jobs.jsonl")
        write_jobs(jobs, ITEMS, max_tokens=40, temperature=0.8)
        cluster.shoal("submit", jobs, "--out", jobs + ".undisturbed", timeout=200)
        cluster.arm(SLOWLY)
        process = cluster.start("submit", jobs, "--out", jobs + ".out")
        wait_for(lambda: cluster.running() >= 8, 60, "sequences to run")
        return jobs, process

    def test_an_emptied_etcd_is_refused_until_adopted_and_the_job_ends(self):
        with Cluster(*SHAPES) as cluster:
            jobs, process = self.start_job(cluster)
            self.empty(cluster, "etcd")
            self.refused_until_adopted(cluster, "etcd", jobs)
            cluster.shoal("deploy", "smol", "--model", MODEL, *SHAPES, "--wait")
            shapes = [(one["tp"], one["stages"]) for one in cluster.replicas()]
            self.assertEqual(shapes, [(2, 1), (1, 3)])
            out, err = process.communicate(timeout=200)
            self.assertEqual(process.returncode, 0, out + err)
            self.assertEqual(texts(read_results(jobs + ".out")), texts(read_results(jobs + ".undisturbed")))

    def test_an_emptied_redis_is_refused_until_adopted(self):
        """What was in it is lost, and said to be; new jobs run after the adoption."""
        with Cluster(*SHAPES) as cluster:
            jobs, process = self.start_job(cluster)
            self.empty(cluster, "redis")
            self.refused_until_adopted(cluster, "redis", jobs)
            out, err = process.communicate(timeout=60)
            self.assertNotEqual(process.returncode, 0, out + err)
            wait_for(lambda: cluster.shoal("submit", jobs, "--out", jobs + ".out", check=False).returncode == 0, 90,
                     "jobs to be taken again")
            self.assertEqual(texts(read_results(jobs + ".out")), texts(read_results(jobs + ".undisturbed")))


if __name__ == "__main__":
    unittest.main(verbosity=2)
