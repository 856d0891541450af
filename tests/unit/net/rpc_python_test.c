/* Starts the server of the tests and lets a stock Python grpcio client try it. The client lives in
 * a virtual environment in the build tree, made on the first run; without network or python3-venv
 * the test fails and says so, it is never skipped in silence. */
#include "net_test.h"

#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/memory.h"

static int run(const char *command)
{
    char *argv[] = {(char[]){"sh"}, (char[]){"-c"}, (char *)(uintptr_t)command, NULL};
    pid_t pid;
    int status = -1;
    assert_int_equal(posix_spawnp(&pid, "sh", NULL, NULL, argv, environ), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static const char *const venv = SHOAL_BUILD_DIR "/tests/net-python";

static int make_venv(void **state)
{
    (void)state;
    /* A half-made one is made anew: it is good when the import works. */
    char *command = mem_format(
        "'%s/bin/python' -c 'import grpc, grpc_health, grpc_reflection' 2>/dev/null || "
        "{ python3 -m venv --clear '%s' && '%s/bin/pip' install -q --disable-pip-version-check "
        "grpcio grpcio-health-checking grpcio-reflection protobuf; }",
        venv, venv, venv);
    int status = run(command);
    free(command);
    if (status != 0)
        print_error("no Python gRPC client: this test needs python3-venv and a package index\n");
    return status;
}

static void test_a_stock_python_client_finds_everything_as_it_expects(void **state)
{
    (void)state;
    rpc_io_t *io = net_test_io();
    rpc_server_t *server = net_test_server(io, NULL);
    char *command = mem_format("'%s/bin/python' '%s/tests/unit/net/rpc_python_test.py' "
                               "127.0.0.1:%u",
                               venv, SHOAL_SOURCE_DIR, rpc_server_port(server));
    assert_int_equal(run(command), 0);
    free(command);
    wait_for(rpc_server_calls(server) == 0);
    assert_int_equal(seen.opened, seen.ended);
    assert_int_equal(seen.overlaps, 0);
    rpc_server_close(server, 0);
    rpc_io_close(io);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_stock_python_client_finds_everything_as_it_expects),
    };
    return cmocka_run_group_tests(tests, make_venv, NULL);
}
