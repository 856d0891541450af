"""A stock Python grpcio client made from our protos: generate, resume, cancel, jobs, health,
reflection; and a stream that survives its coordinator at every token."""
import json
import os
import signal
import subprocess
import time
import unittest

import python_client

python_client.reexecute()

import grpc  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase  # noqa: E402
from shoal.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc, jobs_pb2, jobs_pb2_grpc  # noqa: E402

from harness import BIN, MODEL, Cluster, alive, wait_for  # noqa: E402


def generate(channel, prompt, timeout=60, **sampling):
    request = inference_pb2.GenerateRequest(prompt=prompt, sampling=common_pb2.Sampling(**sampling))
    return inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=timeout)


def collect(stream):
    """(id, ids, text, ended) of a stream's first choice."""
    rid, ids, text, ended = None, [], "", None
    for message in stream:
        if message.HasField("started"):
            rid = message.started.id
            continue
        ids += message.output.ids
        text += message.output.text
        assert message.output.n == len(ids) or rid is None
        if message.output.HasField("ended"):
            ended = message.output.ended
    return rid, ids, text, ended


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--replicas", 1, "--tp", 1, "--stages", 2)
        cls.cluster.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None, None, None)

    def setUp(self):
        self.cluster.arm("")
        wait_for(self.cluster.active, 30, "an active replica")
        self.channel = grpc.insecure_channel(self.cluster.endpoints()[0])

    def tearDown(self):
        self.channel.close()

    def test_generate_streams_ids_and_text(self):
        rid, ids, text, ended = collect(generate(self.channel, "The capital of France is", max_tokens=8))
        self.assertEqual(len(rid), 32)
        self.assertEqual((len(ids), ended.usage.completion_tokens, ended.usage.prompt_tokens), (8, 8, 5))
        self.assertIn("Paris", text)

    def test_a_deployment_that_says_nothing_of_steps_is_shown_with_what_its_ranks_do(self):
        stub = admin_pb2_grpc.AdminStub(self.channel)
        before, = stub.ListDeployments(admin_pb2.ListDeploymentsRequest(), timeout=20).deployments
        before.version = 0  # whatever stands there
        silent = admin_pb2.Deployment()
        silent.CopyFrom(before)
        silent.ClearField("steps")
        epoch = self.cluster.replicas()[0]["epoch"]
        stub.Deploy(admin_pb2.DeployRequest(deployment=silent), timeout=20)
        wait_for(lambda: self.cluster.active() and self.cluster.replicas()[0]["epoch"] > epoch, 30, "the change")
        shown, = self.cluster.replicas()
        self.assertEqual(shown["step_settings"],
                         {"chunk": 512, "speculate": 8, "prefix_cache": True, "whole_prompts": False})
        stub.Deploy(admin_pb2.DeployRequest(deployment=before), timeout=20)
        wait_for(lambda: self.cluster.active() and self.cluster.replicas()[0]["epoch"] > shown["epoch"], 30, "it back")

    def test_choices_differ_and_each_is_reproducible(self):
        def run():
            texts = {}
            for message in generate(self.channel, "Once", max_tokens=12, temperature=1.0, seed=3, choices=3):
                if message.HasField("output"):
                    texts[message.output.choice] = texts.get(message.output.choice, "") + message.output.text
            return texts
        first = run()
        self.assertEqual(first, run())
        self.assertEqual(len(set(first.values())), 3)

    def test_logprobs_come_with_each_id_and_the_best_is_the_greedy_one(self):
        for message in generate(self.channel, "One, two,", max_tokens=4, logprobs=3):
            for i, logprobs in enumerate(message.output.logprobs):
                self.assertEqual(len(logprobs.top), 3)
                self.assertEqual(logprobs.top[0].id, message.output.ids[i])
                self.assertGreaterEqual(logprobs.top[0].logprob, logprobs.top[1].logprob)

    def test_cancel_ends_a_stream(self):
        stream = generate(self.channel, "Tell me everything.", max_tokens=1500, ignore_eos=True)
        rid = next(stream).started.id
        next(stream)
        inference_pb2_grpc.InferenceStub(self.channel).Cancel(inference_pb2.CancelRequest(id=rid), timeout=10)
        last = None
        for last in stream:
            pass
        self.assertEqual(last.output.ended.finish_reason, common_pb2.FINISH_REASON_CANCELLED)
        wait_for(lambda: self.cluster.running() == 0, 5, "the sequence to leave the batch")

    def test_a_request_can_be_cancelled_at_any_coordinator_also_when_its_own_is_dead(self):
        self.cluster.arm("rank.step.begin=stall:20@*")
        first, second = self.cluster.endpoints()[:2]
        with grpc.insecure_channel(second) as other:
            elsewhere = inference_pb2_grpc.InferenceStub(other)
            stream = generate(self.channel, "Tell me everything.", max_tokens=1500, ignore_eos=True)
            rid = next(stream).started.id
            next(stream)
            elsewhere.Cancel(inference_pb2.CancelRequest(id=rid), timeout=10)
            last = list(stream)[-1]
            self.assertEqual(last.output.ended.finish_reason, common_pb2.FINISH_REASON_CANCELLED)
            wait_for(lambda: self.cluster.running() == 0, 5, "the sequence to leave the batch")
            for unknown in (rid, "0123456789abcdef" * 2):
                with self.assertRaises(grpc.RpcError) as caught:
                    elsewhere.Cancel(inference_pb2.CancelRequest(id=unknown), timeout=10)
                self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND, caught.exception.details())

            stream = generate(self.channel, "Tell me everything.", max_tokens=1500, ignore_eos=True)
            rid = next(stream).started.id
            next(stream)
            name = f"coordinator-{self.cluster.endpoints().index(first) + 1}"
            pid = self.cluster.pid(name)
            os.kill(pid, signal.SIGKILL)
            elsewhere.Cancel(inference_pb2.CancelRequest(id=rid), timeout=10)
            resumed = list(elsewhere.Resume(inference_pb2.ResumeRequest(id=rid, n=[1]), timeout=10))
            self.assertEqual(resumed[-1].output.ended.finish_reason, common_pb2.FINISH_REASON_CANCELLED)
            wait_for(lambda: self.cluster.pid(name) not in (None, pid), 20, "the coordinator to be back")
            where = ("status", "--endpoint", first)
            wait_for(lambda: self.cluster.shoal(*where, check=False).returncode == 0, 20, "it to serve")
            wait_for(lambda: self.cluster.running() == 0, 5, "the sequence to leave the batch")

    def test_absurd_parameters_are_refused_by_name(self):
        cases = [dict(temperature=-1), dict(temperature=float("nan")), dict(top_p=0), dict(top_p=1.5), dict(min_p=2),
                 dict(top_k=10**9), dict(max_tokens=0), dict(max_tokens=2**31), dict(choices=0), dict(choices=17),
                 dict(logprobs=21), dict(repetition_penalty=0), dict(presence_penalty=3), dict(frequency_penalty=-3),
                 dict(stop=[""]), dict(stop=["x"] * 9), dict(stop=["x" * 257]), dict(stop_ids=[10**6]),
                 dict(stop_ids=list(range(65))), dict(logit_bias=[common_pb2.LogitBias(id=10**6, bias=1)]),
                 dict(logit_bias=[common_pb2.LogitBias(id=1, bias=101)])]
        for case in cases:
            with self.assertRaises(grpc.RpcError, msg=str(case)) as caught:
                collect(generate(self.channel, "x", **case))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT, str(case))
            self.assertIn(next(iter(case)), caught.exception.details(), str(case))

    def test_malformed_messages_are_refused(self):
        for method in ("/shoal.v1.Inference/Generate", "/shoal.v1.Jobs/Get", "/shoal.v1.Admin/Deploy"):
            call = self.channel.unary_stream(method, request_serializer=lambda b: b, response_deserializer=lambda b: b)
            for junk in (b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 100000):
                with self.assertRaises(grpc.RpcError) as caught:
                    list(call(junk, timeout=10))
                self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        unknown = self.channel.unary_unary("/shoal.v1.Jobs/Nothing", request_serializer=lambda b: b,
                                           response_deserializer=lambda b: b)
        with self.assertRaises(grpc.RpcError) as caught:
            unknown(b"", timeout=5)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_jobs_run_and_stream_their_results(self):
        stub = jobs_pb2_grpc.JobsStub(self.channel)
        items = [jobs_pb2.Item(body_json=json.dumps({"custom_id": str(i), "prompt": "Hi", "max_tokens": 4}).encode())
                 for i in range(5)]
        header = jobs_pb2.JobHeader(idempotency_key="python")
        job = stub.Create(jobs_pb2.CreateJobRequest(header=header, items=items), timeout=20)
        versions = [update.version for update in stub.Watch(jobs_pb2.WatchJobRequest(id=job.id), timeout=60)]
        self.assertEqual(versions, sorted(set(versions)))
        results = list(stub.StreamResults(jobs_pb2.StreamResultsRequest(id=job.id), timeout=20))
        self.assertEqual([r.completion for r in results], [1, 2, 3, 4, 5])
        self.assertEqual({r.custom_id for r in results}, {"0", "1", "2", "3", "4"})
        again = list(stub.StreamResults(jobs_pb2.StreamResultsRequest(id=job.id, after_completion=3), timeout=20))
        self.assertEqual([r.completion for r in again], [4, 5])

    def test_health_and_reflection_answer(self):
        request = health_pb2.HealthCheckRequest(service="shoal.v1.Inference")
        health = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=20)
        self.assertEqual(health.status, health_pb2.HealthCheckResponse.SERVING)
        database = ProtoReflectionDescriptorDatabase(self.channel)
        self.assertLessEqual({"shoal.v1.Inference", "shoal.v1.Jobs", "shoal.v1.Admin", "grpc.health.v1.Health"},
                             set(database.get_services()))
        self.assertIsNotNone(database.FindFileContainingSymbol("shoal.v1.Jobs"))


class Prefixes(unittest.TestCase):
    def test_equal_prefixes_meet_through_two_coordinators(self):
        """Of two replicas, both coordinators choose the one that holds the prompt's beginning: each later request of a
        prefix finds its blocks, whichever coordinator it comes to. The beginnings differ in the first block and have
        more than the eight blocks of sixteen that the ring looks at."""
        topics = ["rivers", "bread", "clocks", "glass", "snow", "letters", "bridges", "moths"]
        prefixes = [f"{topic}: all that is known about {topic}. " + f"Much is said of {topic} in the old books. " * 14
                    for topic in topics]
        with Cluster("--replicas", 2, "--tp", 1, "--stages", 1) as cluster:
            wait_for(cluster.active, 60, "both replicas to be active")
            first, second = (grpc.insecure_channel(one) for one in cluster.endpoints()[:2])
            with first, second:
                cached = {}
                for i, prefix in enumerate(prefixes):
                    order = (first, second, first) if i % 2 == 0 else (second, first, second)
                    for channel, end in zip(order, ("One.", "Two.", "Three.")):
                        _, _, _, ended = collect(generate(channel, prefix + end, max_tokens=2))
                        cached.setdefault(topics[i], []).append(ended.usage.cached_tokens)
                hits = {one["replica"]: one["prefix_hit_tokens"] for one in cluster.replicas()}
            # With all prefixes on one of them, meeting would say nothing.
            self.assertTrue(len(hits) == 2 and all(hits.values()), hits)
            for topic, counts in cached.items():
                self.assertLess(counts[0], 16, f"{topic}: {counts}")
                for count in counts[1:]:
                    self.assertGreaterEqual(count, 128, f"{topic}: {counts}")


class Resume(unittest.TestCase):
    PROMPT = "Words and emoji: sun 🌞, moon 🌙, star 🌟, fire 🔥,"
    SAMPLING = dict(max_tokens=20, ignore_eos=True, temperature=0.8, seed=3)

    def texts_of(self, ids):
        """The text of the first n ids for each n; one that ends inside a character ends with U+FFFD."""
        rows = "".join(json.dumps({"ids": ids[:n]}) + "\n" for n in range(len(ids) + 1))
        done = subprocess.run([os.path.join(BIN, "shoal"), "detokenize", "--model", MODEL, "--jsonl"], input=rows,
                              text=True, capture_output=True, check=True)
        return [json.loads(line)["decoded"] for line in done.stdout.splitlines()]

    def choose_stop(self, texts):
        """Four characters of the text that stand nowhere before and have the end of an id in their middle."""
        whole = texts[-1]
        for text in texts[-3:len(texts) // 2:-1]:
            stop = whole[len(text) - 2:len(text) + 2]
            if not text.endswith("\ufffd") and len(stop) == 4 and whole.find(stop) == len(text) - 2:
                return stop
        return self.fail(f"no string straddles two ids in {texts}")

    def test_a_stream_goes_on_at_the_other_coordinator_at_every_token(self):
        """No gap and no repeat at any n, some of which end inside an emoji and inside the stop string."""
        with Cluster("--replicas", 1, "--tp", 1, "--stages", 1) as cluster:
            with grpc.insecure_channel(cluster.endpoints()[0]) as channel:
                _, ids, whole, _ = collect(generate(channel, self.PROMPT, **self.SAMPLING))
                texts = self.texts_of(ids)
                stop = self.choose_stop(texts)
                _, stopped, text, _ = collect(generate(channel, self.PROMPT, stop=[stop], **self.SAMPLING))
            self.assertEqual(whole, texts[-1])
            self.assertEqual(text, whole[:whole.find(stop)])
            self.assertEqual(stopped, ids[:len(stopped)])
            cluster.arm("rank.step.begin=stall:60@*")
            inside_emoji, inside_stop = 0, 0
            for n in range(len(stopped)):
                read_n, read = self.resume_at(cluster, n, stop, stopped, text)
                ended = len(texts[read_n].rstrip("\ufffd"))
                self.assertTrue(text.startswith(read) and len(read) <= ended, (read, texts[read_n]))
                inside_emoji += texts[read_n].endswith("\ufffd") and ord(whole[ended]) > 0xffff
                inside_stop += len(text) < ended < len(text) + len(stop)
            self.assertGreater(inside_emoji, 0, texts)
            self.assertGreater(inside_stop, 0, (texts, stop))

    def start_resumable(self, channel, stop):
        """A stream that its first message calls resumable. The coordinator waits 5 ms for Redis to know the request and
        says so honestly when it does not, which on a busy machine may happen: then it is asked for another one."""
        for _ in range(20):
            stream = generate(channel, self.PROMPT, stop=[stop], **self.SAMPLING)
            started = next(stream).started
            if started.resumable:
                return stream, started.id
            inference_pb2_grpc.InferenceStub(channel).Cancel(inference_pb2.CancelRequest(id=started.id), timeout=20)
            stream.cancel()
        return self.fail("not one of 20 streams is resumable")

    def resume_at(self, cluster, n, stop, ids, text):
        """Reads n ids or a few more, kills the coordinator and reads the rest at the other one. Returns how many ids
        were read, and their text, when it died."""
        first, second = cluster.endpoints()[:2] if n % 2 == 0 else cluster.endpoints()[1::-1]
        for endpoint in (first, second):
            with grpc.insecure_channel(endpoint) as channel:
                grpc.channel_ready_future(channel).result(timeout=20)
        name = f"coordinator-{cluster.endpoints().index(first) + 1}"
        pid = cluster.pid(name)
        got_ids, got_text, rid = [], "", None
        with grpc.insecure_channel(first) as channel:
            stream, rid = self.start_resumable(channel, stop)
            while len(got_ids) < n:
                output = next(stream).output
                got_ids += output.ids
                got_text += output.text
            os.kill(pid, signal.SIGKILL)
            stream.cancel()
        read_n, read = len(got_ids), got_text
        before = time.monotonic()
        with grpc.insecure_channel(second) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            while True:
                try:
                    for message in stub.Resume(inference_pb2.ResumeRequest(id=rid, n=[len(got_ids)]), timeout=30):
                        got_ids += message.output.ids
                        got_text += message.output.text
                    break
                except grpc.RpcError as error:
                    self.assertIn(error.code(), (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND))
                    self.assertLess(time.monotonic() - before, 3, error.details())
        self.assertEqual((got_ids, got_text), (ids, text), f"resumed at {n}")
        wait_for(lambda: cluster.pid(name) != pid and alive(cluster.pid(name)), 20, "the coordinator to be back")
        return read_n, read


if __name__ == "__main__":
    unittest.main(verbosity=2)
