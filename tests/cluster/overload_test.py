"""Batching and overload, from the counters of the leader and the memory of the processes: a request joins a batch that
runs; at three times the load that fits what is too much is refused with a time to come back, what was accepted
finishes, and no process grows with the time that the overload lasts."""
import sys
import threading
import time
import unittest

import python_client

python_client.reexecute()

import grpc  # noqa: E402
from shoal.v1 import admin_pb2, admin_pb2_grpc  # noqa: E402

from clients_test import collect, generate  # noqa: E402
from harness import MODEL, Cluster, wait_for  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20


def memory(pid):
    """(VmRSS, VmHWM) of a process in bytes."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        fields = dict(line.split(":", 1) for line in status)
    return tuple(int(fields[name].split()[0]) * KIB for name in ("VmRSS", "VmHWM"))


class Batching(unittest.TestCase):
    def test_a_request_that_arrives_during_a_generation_joins_the_running_batch(self):
        with Cluster("--replicas", 1, "--tp", 1, "--stages", 1) as cluster:
            with grpc.insecure_channel(cluster.endpoints()[0]) as channel:
                def counters():
                    stub = admin_pb2_grpc.AdminStub(channel)
                    return stub.ListReplicas(admin_pb2.ListReplicasRequest(), timeout=10).replicas[0]
                # Slow enough that 512 tokens outlast the rest of this test.
                cluster.arm("rank.step.begin=stall:20@*")
                long = generate(channel, "Count to a thousand:", max_tokens=512, ignore_eos=True, timeout=300)
                for _ in range(6):
                    next(long)
                wait_for(lambda: counters().steps > 2, 20, "the counters of some steps")
                alone = counters()
                self.assertEqual((alone.sequences_max_in_step, alone.running), (1, 1))
                _, ids, _, _ = collect(generate(channel, "Hi", max_tokens=8, ignore_eos=True))
                self.assertEqual(len(ids), 8)
                wait_for(lambda: counters().sequences_max_in_step > 1, 20, "a step of two")
                both = counters()
                self.assertEqual((both.sequences_max_in_step, both.running), (2, 1), "the long request still runs")
                # The eight tokens came out of steps that carried the long one on as well: fewer steps than tokens.
                steps, tokens = both.steps - alone.steps, both.tokens_produced - alone.tokens_produced
                self.assertGreaterEqual(tokens, steps + 7, (steps, tokens))
                cluster.arm("")
                _, ids, _, _ = collect(long)
                self.assertGreater(len(ids), 400, "the long request went on to its end")


class Overload(unittest.TestCase):
    """A replica of 4,096 KV tokens and requests of at most 352: 11 fit at a time, 33 clients ask without a pause."""
    FIT, CLIENTS, SECONDS, MAX_TOKENS = 11, 33, 45, 160

    def client(self, endpoint, number, until, outcomes, turns_min=0):
        """Asks again and again, so many times at least; after a refusal it comes back when it was told to."""
        with grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            for turn in range(1000):
                if turn >= turns_min and time.monotonic() >= until:
                    return
                try:
                    _, ids, _, _ = collect(generate(channel, f"Client {number}, request {turn}: " + "word " * 150,
                                                    timeout=240, max_tokens=self.MAX_TOKENS, ignore_eos=True))
                    outcomes.append(("ok", len(ids)))
                except grpc.RpcError as error:
                    retry = int(dict(error.trailing_metadata() or ()).get("retry-after-ms", 0))
                    outcomes.append((error.code().name, retry))
                    time.sleep(min(max(retry, 100), 15000) / 1000)

    def test_overload_is_refused_with_a_time_and_costs_no_memory_that_grows(self):
        with Cluster(model=None) as cluster:
            cluster.shoal("deploy", "smol", "--model", MODEL, "--stages", 2, "--context-max", 512, "--kv-tokens-max",
                          4096, "--wait")
            pids = {name: cluster.pid(name) for name in ("coordinator-1", "coordinator-2", "worker")}
            pids.update((f"rank {rank['rank']}", rank["pid"]) for rank in cluster.ranks())
            # Idle, but not untouched: as many as fit were served at once, so the memory of the largest step is there,
            # and three times at least, so each block was taken: those of texts that ended are kept as long as others
            # are free.
            self.run_clients(cluster, pids, [], self.FIT, 3, turns_min=3)
            wait_for(lambda: cluster.running() == 0, 60, "the batch to be empty")
            idle = {name: memory(pid) for name, pid in pids.items()}
            # A step takes 80 ms at least, so that no machine is fast enough for this load.
            cluster.arm("rank.step.begin=stall:80@*")
            outcomes = []
            halves = self.run_clients(cluster, pids, outcomes, self.CLIENTS, self.SECONDS)
            cluster.arm("")
            wait_for(lambda: cluster.running() == 0, 60, "the batch to be empty")
            after = {name: memory(pid) for name, pid in pids.items()}
            self.show(pids, idle, halves, after, outcomes)
            self.check_outcomes(outcomes)
            for name in pids:
                self.check_memory(name, idle[name], halves[0][name], halves[1][name], after[name])

    def run_clients(self, cluster, pids, outcomes, n, seconds, turns_min=0):
        """Peaks of memory in the first and the second half of the overload."""
        begin = time.monotonic()
        halves = [dict.fromkeys(pids, 0), dict.fromkeys(pids, 0)]
        endpoints = cluster.endpoints()
        until = begin + seconds
        threads = [threading.Thread(target=self.client, args=(endpoints[i % 2], i, until, outcomes, turns_min))
                   for i in range(n)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            half = halves[time.monotonic() > begin + seconds / 2]
            for name, pid in pids.items():
                half[name] = max(half[name], memory(pid)[0])
            time.sleep(0.25)
        return halves

    def show(self, pids, idle, halves, after, outcomes):
        accepted = sum(kind == "ok" for kind, _ in outcomes)
        print(f"\n{accepted} accepted and finished, {len(outcomes) - accepted} refused; MiB resident:", file=sys.stderr)
        print(f"{'':14} {'idle':>7} {'1st half':>8} {'2nd half':>8} {'after':>7} {'highest':>8}", file=sys.stderr)
        for name in pids:
            row = [idle[name][0], halves[0][name], halves[1][name], *after[name]]
            print(f"{name:14} " + " ".join(f"{value / MIB:8.1f}" for value in row), file=sys.stderr)

    def check_outcomes(self, outcomes):
        self.assertLessEqual({kind for kind, _ in outcomes}, {"ok", "RESOURCE_EXHAUSTED"}, outcomes)
        accepted = [n for kind, n in outcomes if kind == "ok"]
        refused = [retry for kind, retry in outcomes if kind != "ok"]
        self.assertGreaterEqual(len(accepted), self.FIT)
        self.assertEqual(set(accepted), {self.MAX_TOKENS}, "what was accepted got all its tokens")
        self.assertGreaterEqual(len(refused), self.FIT, "what does not fit is refused")
        self.assertTrue(all(0 < retry <= 60000 for retry in refused), refused)

    def check_memory(self, name, idle, first, second, after):
        # What a request may cost a process while it is there: a stream with gRPC's buffers of up to 64 KiB each way,
        # its text, ids and parameters twice (token log and what is on its way), under another 64 KiB for 352 tokens.
        cost = self.CLIENTS * 192 * KIB
        # The allocator keeps an arena a thread; what is freed stays in them, and idle processes had used few of them.
        slack = idle[0] // 20 + 2 * MIB
        self.assertLessEqual(max(first, second), idle[0] + cost + slack, f"{name} under overload")
        # What lasts twice as long does not cost more: nothing is kept for a request that was refused or has ended.
        self.assertLessEqual(second, first + first // 50 + MIB, f"{name}: the second half against the first")
        self.assertLessEqual(after[0], max(first, second) + MIB, f"{name} after the overload")
        # The highest mark, which no sampling misses, may be of the start, when the model was opened.
        self.assertLessEqual(after[1], max(idle[1], idle[0] + cost + slack), f"{name}: its highest mark")


if __name__ == "__main__":
    unittest.main(verbosity=2)
