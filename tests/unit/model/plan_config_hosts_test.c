/* The file of hosts: what it says, and what it must not say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "common/model/hosts_file.h"

static void check_wrong(const char *text, const char *words)
{
    hosts_file_t hosts;
    if (hosts_file_parse("f.json", text, strlen(text), &hosts) != STATUS_INVALID ||
        strstr(status_text(), words) == NULL)
        fail_msg("%s: \"%s\" does not say \"%s\"", text, status_text(), words);
}

static void test_known_devices_have_defaults_and_what_is_given_wins(void **state)
{
    (void)state;
    static const char text[] =
        "{\"hosts\": [{\"name\": \"n\", \"count\": 2, \"link_gb_s\": 50, \"link_us\": 3, "
        "\"devices\": ["
        "{\"name\": \"a100-80\", \"count\": 3},"
        "{\"name\": \"A100-80\", \"memory_gib\": 40, \"reserve_gib\": 2, "
        "\"tflops\": {\"int8\": 7}}]}]}";
    hosts_file_t hosts;
    assert_int_equal(hosts_file_parse("f", text, strlen(text), &hosts), STATUS_OK);
    assert_int_equal(hosts.n_hosts, 2);
    assert_int_equal(hosts.n_devices, 8);
    assert_string_equal(hosts.hosts[1].name, "n-1");
    assert_int_equal(hosts.hosts[1].device_first, 4);
    assert_int_equal(hosts.host_of[3], 0);
    assert_int_equal(hosts.host_of[4], 1);
    assert_true(hosts.hosts[0].link_bytes_s == 50e9);
    assert_int_equal(hosts.devices[0].memory_bytes, 80ull << 30);
    assert_true(hosts.devices[0].memory_bytes_s == 2039e9);
    assert_int_equal(hosts.devices[3].memory_bytes, 40ull << 30);
    assert_int_equal(hosts.devices[3].reserve_bytes, 2ull << 30);
    /* Integer blocks go by INT8; e4m3, which an A100 has not, by BF16. */
    assert_true(hosts_flops_s(&hosts.devices[0], QTYPE_Q4_K) == 624e12);
    assert_true(hosts_flops_s(&hosts.devices[3], QTYPE_Q4_K) == 7e12);
    assert_true(hosts_flops_s(&hosts.devices[0], QTYPE_F8S) == 312e12);
    assert_true(hosts_flops_s(&hosts.devices[0], QTYPE_F32) == 19.5e12);
    hosts_file_release(&hosts);
    hosts_device_t l4;
    assert_true(hosts_device_known("l4-24", &l4));
    assert_true(hosts_flops_s(&l4, QTYPE_F8S) == 242.5e12);
    assert_true(hosts_flops_s(&l4, QTYPE_BF16) == 121e12);
}

static void test_what_is_wrong_is_named(void **state)
{
    (void)state;
    check_wrong("[]", "object");
    check_wrong("{\"hosts\": []}", "f.json: there are no hosts");
    check_wrong("{\"hosts\": [1]}", "hosts[0] must be an object");
    check_wrong("{\"host\": []}", "\"host\" is not known here");
    check_wrong("{\"hosts\": [{\"devices\": []}]}", "hosts[0] has no devices");
    check_wrong("{\"hosts\": [{\"devices\": [{\"name\": \"H100-80\", \"memory\": 1}]}]}",
                "devices[0]: \"memory\" is not known here");
    check_wrong("{\"hosts\": [{\"devices\": [{\"name\": \"Z9\"}]}]}",
                "\"Z9\" is no known device, so memory_gib");
    check_wrong("{\"hosts\": [{\"devices\": [{\"name\": \"H100-80\", \"memory_gib\": -1}]}]}",
                "\"memory_gib\" is -1");
    check_wrong("{\"hosts\": [{\"devices\": [{\"name\": \"H100-80\", \"reserve_gib\": 80}]}]}",
                "reserve_gib leaves nothing");
    check_wrong("{\"hosts\": [{\"devices\": [{\"name\": \"H100-80\", \"count\": 5000}]}]}",
                "count");
    check_wrong("{\"hosts\": [{\"count\": 1000, \"link_gb_s\": 1, \"devices\": [{\"name\": "
                "\"H100-80\", \"count\": 8}]}]}", "more than 4096 devices");
    check_wrong("{\"hosts\": [{\"count\": 2, \"devices\": [{\"name\": \"H100-80\"}]}]}",
                "host host-0: link_gb_s, the bandwidth to the other hosts, is missing");
    check_wrong("{\"hosts\": [{\"devices\": [{\"memory_gib\": 1, \"bandwidth_gb_s\": 1, "
                "\"tflops\": {\"bf16\": 1}, \"count\": 2}]}]}",
                "link_gb_s of its devices is missing");
    check_wrong("{\"hosts\": [{\"devices\": [{\"memory_gib\": 1, \"bandwidth_gb_s\": 1, "
                "\"tflops\": {\"bf17\": 1}}]}]}", "tflops: \"bf17\" is not known here");
}

static void test_more_of_the_same_are_grouped_as_they_were(void **state)
{
    (void)state;
    static const char text[] =
        "{\"hosts\": [{\"devices\": [{\"name\": \"H100-80\", \"count\": 8}]}]}";
    hosts_file_t hosts, more;
    assert_int_equal(hosts_file_parse("f", text, strlen(text), &hosts), STATUS_OK);
    hosts_file_alike(&hosts, 2, 12, &more);
    assert_int_equal(more.n_hosts, 2);
    assert_int_equal(more.hosts[0].n_devices, 8);
    assert_int_equal(more.hosts[1].n_devices, 4);
    assert_int_equal(more.hosts[1].device_first, 8);
    hosts_file_release(&more);
    hosts_file_release(&hosts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_devices_have_defaults_and_what_is_given_wins),
        cmocka_unit_test(test_what_is_wrong_is_named),
        cmocka_unit_test(test_more_of_the_same_are_grouped_as_they_were),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
