/* The quota of a cgroup, read from files like the kernel's under a root of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/base/cpu_quota.h"
#include "common/base/pool.h"

static char root[] = "/tmp/shoal-quota-XXXXXX";

static void put(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    for (char *at = whole + strlen(root) + 1; (at = strchr(at, '/')); at++) {
        *at = 0;
        mkdir(whole, 0700);
        *at = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/shoal-quota-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int drop_root(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

static void test_without_files_or_limits_there_is_no_quota(void **state)
{
    (void)state;
    assert_int_equal(cpu_quota(root), 0);
    put("/proc/self/cgroup", "0::/a/b\n");
    assert_int_equal(cpu_quota(root), 0);
    put("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_int_equal(cpu_quota(root), 0);
}

static void test_the_smallest_quota_on_the_way_to_the_root_counts_rounded_up(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/sys/fs/cgroup/a/b/cpu.max", "350000 100000\n");
    assert_int_equal(cpu_quota(root), 4);
    put("/sys/fs/cgroup/a/cpu.max", "150000 100000\n");
    assert_int_equal(cpu_quota(root), 2);
    put("/sys/fs/cgroup/cpu.max", "1000 100000\n");
    assert_int_equal(cpu_quota(root), 1);
}

static void test_version_1_is_read_where_the_cpu_controller_is_named(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/x\n0::/x\n");
    put("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "250000\n");
    put("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "50000\n");
    assert_int_equal(cpu_quota(root), 5);
    put("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
    assert_int_equal(cpu_quota(root), 0);
}

static void test_broken_files_are_no_quota(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "nonsense\n0::\n:::\n0::/a\n");
    put("/sys/fs/cgroup/a/cpu.max", "0 100000\n");
    put("/sys/fs/cgroup/cpu.max", "200000\n");
    assert_int_equal(cpu_quota(root), 0);
    put("/sys/fs/cgroup/a/cpu.max", "100000 0\n");
    assert_int_equal(cpu_quota(root), 0);
}

static void test_the_real_one_is_what_pool_cpus_stays_within(void **state)
{
    (void)state;
    uint32_t quota = cpu_quota("");
    assert_true(pool_cpus() >= 1);
    assert_true(quota == 0 || pool_cpus() <= quota);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_without_files_or_limits_there_is_no_quota, make_root,
                                        drop_root),
        cmocka_unit_test_setup_teardown(
            test_the_smallest_quota_on_the_way_to_the_root_counts_rounded_up, make_root, drop_root),
        cmocka_unit_test_setup_teardown(test_version_1_is_read_where_the_cpu_controller_is_named,
                                        make_root, drop_root),
        cmocka_unit_test_setup_teardown(test_broken_files_are_no_quota, make_root, drop_root),
        cmocka_unit_test(test_the_real_one_is_what_pool_cpus_stays_within),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
