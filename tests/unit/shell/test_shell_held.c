/* A coordinator that drops what etcd says while etcd is not trusted: from its very start here, by a
 * fail point, so everything that it comes to know it has listed anew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/net/rpc_message.h"
#include "shoal/v1/admin.pb-c.h"
#include "tests/unit/shell/client.h"

#include <cmocka.h>

/* Deploys, and waits until the coordinator has seen that deployment and itself in etcd. */
static int begin(void **state)
{
    setenv("SHOAL_FAILPOINTS", "coordinator.held=error@*", 1);
    return client_begin(state);
}

static void test_changes_that_cannot_be_held_are_named_dropped_and_listed_anew(void **state)
{
    (void)state;
    char script[160];
    snprintf(script, sizeof script, "grep -q 'what it says is dropped' %s/first.log",
             client_stage.dir);
    assert_int_equal(system(script), 0);
    client_await_store(false, "ok");
    client_await_store(true, "ok");
    Shoal__V1__StatusResponse *status = client_status();
    assert_int_equal(status->n_coordinators, 1);
    assert_true(status->elected);
    rpc_message_free(status);
    char id[33];
    assert_int_equal(client_create(client_lines, 1, "", id), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes_that_cannot_be_held_are_named_dropped_and_listed_anew),
    };
    return cmocka_run_group_tests(tests, begin, client_end);
}
