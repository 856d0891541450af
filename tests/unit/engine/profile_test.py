"""`shoal-worker offline profile`: its trace and its table, for every way to cut a small model.

Usage: profile_test.py WORKER MODEL
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest

WORKER, MODEL = sys.argv.pop(1), sys.argv.pop(1)
PROMPT, BATCH = 24, 2


def profile(tp=1, stages=1, threads=1, batch=1):
    """The events of the two steps by phase and rank, and the table's text."""
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "trace.json")
        words = [WORKER, "offline", "profile", "--model", MODEL, "--out", out]
        for name, value in (("prompt", PROMPT), ("gen", 4), ("tp", tp), ("stages", stages),
                            ("threads", threads), ("batch", batch)):
            words += [f"--{name}", str(value)]
        run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False,
                             env={**os.environ, "TMPDIR": directory})
        assert run.returncode == 0, run.stderr
        assert os.listdir(directory) == ["trace.json"], os.listdir(directory)
        with open(out, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    names = [e for e in events if e["ph"] == "M"]
    assert len(names) == tp * stages, names
    steps = {}
    for event in events:
        if event["ph"] == "X":
            steps.setdefault(event["args"]["step"], {}).setdefault(event["pid"], []).append(event)
    prefill, decode = sorted(steps, key=lambda step: -max(
        e["args"]["rows"] for e in steps[step][0] if e["name"] == "step"))
    return {"prefill": steps[prefill], "decode": steps[decode]}, run.stdout


def operations(ranks, name):
    return sum(e["args"]["operations"] for events in ranks.values() for e in events
               if e["name"] == name)


class Profile(unittest.TestCase):
    def test_each_rank_shows_its_ops_inside_its_step(self):
        for cut in ({}, {"tp": 2}, {"stages": 2}, {"threads": 2, "batch": BATCH}):
            with self.subTest(**cut):
                phases, _ = profile(**cut)
                for phase, ranks in phases.items():
                    self.assertEqual(sorted(ranks), list(range(len(ranks))))
                    self.assertEqual(len(ranks), cut.get("tp", 1) * cut.get("stages", 1))
                    for events in ranks.values():
                        step = [e for e in events if e["name"] == "step"]
                        self.assertEqual(len(step), 1)
                        begin, end = step[0]["ts"], step[0]["ts"] + step[0]["dur"]
                        ops = [e for e in events if e["name"] != "step"]
                        self.assertIn("matmul", {e["name"] for e in ops})
                        for e in ops:
                            self.assertGreaterEqual(e["ts"], begin - 0.002)
                            self.assertLessEqual(e["ts"] + e["dur"], end + 0.002)
                        self.assertLessEqual(sum(e["dur"] for e in ops), end - begin + 1)
                    rows = ranks[0][-1]["args"]["rows"]
                    batch = cut.get("batch", 1)
                    # Sequences are admitted one by one, so the first may begin alone.
                    least, most = (PROMPT, PROMPT * batch) if phase == "prefill" else (batch, batch)
                    self.assertTrue(least <= rows <= most, rows)

    def test_slices_and_stages_share_the_operations_of_the_whole(self):
        whole, _ = profile()
        for cut in ({"tp": 2}, {"stages": 2}):
            parts, _ = profile(**cut)
            with self.subTest(**cut):
                for phase in ("prefill", "decode"):
                    # A decode step's keys depend on which of the steps was the fastest.
                    self.assertEqual(operations(parts[phase], "matmul"),
                                     operations(whole[phase], "matmul"))
                self.assertEqual(operations(parts["prefill"], "attention"),
                                 operations(whole["prefill"], "attention"))

    def test_the_table_names_the_peak_the_shares_and_the_slowest_link(self):
        _, table = profile(tp=2)
        lines = table.splitlines()
        self.assertRegex(lines[0], r"^peak .* GOPS int8")
        self.assertEqual(sum(line.startswith("slowest link: ") for line in lines), 2)
        self.assertRegex(table, r"exchange of partials +\d+")
        steps = [line for line in lines if "(step)" in line]
        self.assertEqual(len(steps), 4)
        for rank in (0, 1):
            shares = [float(line.split("%")[0].split()[-1]) for line in lines
                      if line.split()[:1] == [str(rank)] and "%" in line and "(step)" not in line]
            self.assertAlmostEqual(sum(shares), 200, delta=3)  # of two steps
        _, alone = profile()
        self.assertNotIn("slowest link", alone)

    def test_rows_come_as_json_and_a_step_of_stages_has_its_share_of_the_batch(self):
        words = [WORKER, "offline", "profile", "--model", MODEL, "--prompt", str(PROMPT), "--gen", "8", "--batch", "4",
                 "--stages", "2", "--threads", "1", "-o", "json"]
        lines = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
        rows = [json.loads(line) for line in lines]
        for phase in ("prefill", "decode"):
            for rank in (0, 1):
                of = [row for row in rows if row["phase"] == phase and row["rank"] == rank]
                self.assertTrue({"matmul", "attention"} <= {row["op"] for row in of}, of)
                self.assertTrue(0.1 < sum(row["share"] for row in of) <= 1.001, of)
        self.assertEqual({row["rows"] for row in rows if row["phase"] == "decode"}, {2})


if __name__ == "__main__":
    unittest.main(verbosity=2)
