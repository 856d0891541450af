"""A stock grpcio client against the server of the C test: argv[1] is its endpoint.

Nothing here comes from this tree: the message types are those that reflection sends, the health and
reflection clients are the published ones.
"""
import sys
import threading

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)


def check(condition, what):
    if not condition:
        raise SystemExit("FAILED: " + what)


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise SystemExit("FAILED: the call went well")


def echo(channel):
    unary = channel.unary_unary("/test.Echo/Unary")
    check(unary(b"hello", timeout=10) == b"hello", "unary echo")
    check(unary(b"", timeout=10) == b"", "empty unary echo")
    error = code_of(lambda: channel.unary_unary("/test.Echo/Fail")("x ✓".encode(), timeout=10))
    check(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, "status of a failure")
    check(error.details() == "x ✓", "words of a failure")
    check(("retry-after-ms", "250") in error.trailing_metadata(), "trailing metadata")
    error = code_of(lambda: channel.unary_unary("/test.Echo/None")(b"", timeout=10))
    check(error.code() == grpc.StatusCode.UNIMPLEMENTED, "unknown method")
    error = code_of(lambda: channel.unary_unary("/test.Echo/Silent")(b"", timeout=0.3))
    check(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
    error = code_of(lambda: unary(b"x" * (5 << 20), timeout=10))
    check(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, "message over the limit")
    got = list(channel.unary_stream("/test.Echo/Count")(b"1000 10", timeout=20))
    check([int(message.rstrip(b"\0")) for message in got] == list(range(1000, 0, -1)), "stream")
    total = channel.stream_unary("/test.Echo/Sum")((b"abc" for _ in range(1000)), timeout=20)
    check(total == b"3000", "client stream")
    numbers = [b"%d" % i for i in range(200)]
    got = list(channel.stream_stream("/test.Echo/Chat")(iter(numbers), timeout=20))
    check(got == numbers, "both streams")


def compressed(endpoint):
    with grpc.insecure_channel(endpoint, compression=grpc.Compression.Gzip) as channel:
        error = code_of(lambda: channel.unary_unary("/test.Echo/Unary")(b"x" * 5000, timeout=10))
        check(error.code() == grpc.StatusCode.UNIMPLEMENTED, "compressed: %s" % error.code())


def health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest
    for service in ("", "test.Echo"):
        answer = stub.Check(request(service=service), timeout=10)
        check(answer.status == health_pb2.HealthCheckResponse.SERVING, "health of " + service)
    error = code_of(lambda: stub.Check(request(service="nobody"), timeout=10))
    check(error.code() == grpc.StatusCode.NOT_FOUND, "health of nobody")
    watch = stub.Watch(request(service="nobody"), timeout=10)
    check(next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, "health watch")
    watch.cancel()


def reflection(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    wanted = {"test.Echo", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
              "grpc.reflection.v1alpha.ServerReflection"}
    check(wanted <= services, "services %s" % services)
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("shoal.v1.Inference")
    method = service.FindMethodByName("Generate")
    check(method.server_streaming and not method.client_streaming, "Generate streams")
    # The types arrive whole, those of imported files too: make a message, and read it back.
    request_type = message_factory.GetMessageClass(method.input_type)
    request = request_type(model="m", prompt="p")
    request.sampling.temperature = 0.5
    check(request_type.FromString(request.SerializeToString()) == request, "reflected types")
    check(pool.FindMessageTypeByName("shoal.v1.ListModelsResponse.Model").fields_by_name["digest"],
          "a nested type")
    check(pool.FindFileByName("shoal/v1/jobs.proto").package == "shoal.v1", "a file by name")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such")
    answer = next(stub.ServerReflectionInfo(iter([ask]), timeout=10))
    check(answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0], "unknown symbol")


def parallel(channel):
    unary = channel.unary_unary("/test.Echo/Unary")
    futures = [(b"%d" % i, unary.future(b"%d" % i, timeout=30)) for i in range(500)]
    check(all(future.result() == want for want, future in futures), "parallel calls")


def main():
    endpoint = sys.argv[1]
    guard = threading.Timer(100, lambda: sys.exit("FAILED: hangs"))
    guard.daemon = True
    guard.start()
    with grpc.insecure_channel(endpoint) as channel:
        echo(channel)
        health(channel)
        reflection(channel)
        parallel(channel)
    compressed(endpoint)
    print("all well")


main()
