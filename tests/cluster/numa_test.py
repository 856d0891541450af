"""Ranks on a machine of two NUMA nodes: this one, told so by files of our own over the system's, in a mount
namespace that ends with the test. Needs root and two CPUs. Speed is not shown: the memory is one."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from harness import Cluster

INSIDE = "SHOAL_TEST_NUMA_NODES"


def cpus_of(pid):
    """The CPUs that each thread of a process may use, as the kernel writes them."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status", encoding="utf-8") as status:
            found += [line.split()[1] for line in status if line.startswith("Cpus_allowed_list:")]
    return found


class Numa(unittest.TestCase):
    def test_each_rank_lives_in_a_node_of_its_own_and_hosts_show_the_nodes(self):
        with Cluster("--tp", "2", "--stages", "1") as cluster:
            ranks = {rank["rank"]: rank["pid"] for rank in cluster.ranks()}
            self.assertEqual(sorted(ranks), [0, 1])
            main = {rank: os.sched_getaffinity(pid) for rank, pid in ranks.items()}
            self.assertEqual(main, {0: {0}, 1: {1}})
            # The control thread is older than the binding; all that compute and serve came after it.
            for rank, pid in ranks.items():
                cpus = cpus_of(pid)
                self.assertEqual([one for one in cpus if one != str(rank)], ["0-1"])
                self.assertGreater(len(cpus), 2)
            self.assertEqual(cluster.json("hosts")[0]["node_cores"], [1, 1])
            self.assertIn("1+1", cluster.shoal("hosts").stdout)
            self.assertTrue(cluster.shoal("run", "The sea is", "--max-tokens", "4").stdout)


def machine_of_two_nodes(folder):
    files = {"online": "0-1", "possible": "0-1", "has_cpu": "0-1", "has_memory": "0", "node0/cpulist": "0",
             "node1/cpulist": "1"}
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(text + "\n")


def main():
    if os.environ.get(INSIDE):
        subprocess.run(["mount", "--bind", os.environ[INSIDE], "/sys/devices/system/node"], check=True)
        unittest.main()
    if os.geteuid() != 0 or not {0, 1} <= os.sched_getaffinity(0):
        print("skipped: needs root and the CPUs 0 and 1")
        return 1 if os.environ.get("SHOAL_REQUIRE_ALL") else 0
    folder = tempfile.mkdtemp(prefix="shoal-nodes-")
    machine_of_two_nodes(folder)
    try:
        inside = dict(os.environ, **{INSIDE: folder})
        command = ["unshare", "--mount", "taskset", "-c", "0,1", sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        return subprocess.run(command, env=inside, check=False).returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
