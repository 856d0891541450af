/* NUMA nodes, read from files like the kernel's under a root of its own: a machine of one node can
 * so be one of two or four, with CPUs off line or in another cpuset. And what is chosen for ranks,
 * and what binding does to the thread that asks for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/mempolicy.h>
#include <pthread.h>

#include "worker/numa.h"

#define NODES "/sys/devices/system/node"

static char root[64];

/* The folders before it are made. */
static void put(const char *path, const char *text)
{
    char full[512];
    int n = snprintf(full, sizeof full, "%s%s", root, path);
    assert_true(n > 0 && (size_t)n < sizeof full);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/shoal-numa-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int drop_root(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

static void put_two_nodes(void)
{
    put(NODES "/online", "0-1\n");
    put(NODES "/has_memory", "0-1\n");
    put(NODES "/node0/cpulist", "0-3,8-11\n");
    put(NODES "/node1/cpulist", "4-7,12-15\n");
    put("/sys/devices/system/cpu/online", "0-15\n");
    put("/proc/self/status", "Name:\tshoal\nCpus_allowed_list:\t0-15\nMems_allowed_list:\t0-1\n");
}

static void test_a_system_that_does_not_tell_has_no_nodes_and_binds_nothing(void **state)
{
    (void)state;
    numa_t numa;
    const uint32_t used[NUMA_NODES_MAX] = {0};
    numa_read(root, &numa);
    assert_int_equal(numa.n, 0);
    assert_int_equal(numa_choose(&numa, used, 1), NUMA_NONE);
    put(NODES "/online", "what?\n");
    numa_read(root, &numa);
    assert_int_equal(numa.n, 0);
    put(NODES "/online", "0-1\n"); /* and neither has a list of CPUs */
    numa_read(root, &numa);
    assert_int_equal(numa.n, 0);
}

static void test_two_nodes_have_the_cpus_that_the_system_gives_them(void **state)
{
    (void)state;
    numa_t numa;
    put_two_nodes();
    numa_read(root, &numa);
    assert_int_equal(numa.n, 2);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(numa.nodes[i].id, i);
        assert_int_equal(numa.nodes[i].n_cpus, 8);
        assert_true(numa.nodes[i].has_memory);
    }
    for (uint32_t cpu = 0; cpu < 16; cpu++) {
        assert_int_equal(CPU_ISSET(cpu, &numa.nodes[0].cpus) != 0, cpu / 4 % 2 == 0);
        assert_int_equal(CPU_ISSET(cpu, &numa.nodes[1].cpus) != 0, cpu / 4 % 2 == 1);
    }
    assert_int_equal(numa_index(&numa, 1), 1);
    assert_int_equal(numa_index(&numa, 2), 2);
}

static void test_cpus_off_line_or_of_other_cpusets_do_not_count(void **state)
{
    (void)state;
    numa_t numa;
    put_two_nodes();
    put("/sys/devices/system/cpu/online", "0-9,11-15\n");
    put("/proc/self/status", "Cpus_allowed_list:\t2-4,10-13\nMems_allowed_list:\t0\n");
    numa_read(root, &numa);
    assert_int_equal(numa.n, 2);
    assert_int_equal(numa.nodes[0].n_cpus, 3); /* 2, 3 and 11 */
    assert_true(CPU_ISSET(11, &numa.nodes[0].cpus) && !CPU_ISSET(10, &numa.nodes[0].cpus));
    assert_int_equal(numa.nodes[1].n_cpus, 3); /* 4, 12 and 13 */
    assert_true(numa.nodes[0].has_memory && !numa.nodes[1].has_memory);
    /* A cpuset inside one node: the other one is none of ours. */
    put("/proc/self/status", "Cpus_allowed_list:\t4-7\n");
    numa_read(root, &numa);
    assert_int_equal(numa.n, 1);
    assert_int_equal(numa.nodes[0].id, 1);
    const uint32_t used[NUMA_NODES_MAX] = {0};
    assert_int_equal(numa_choose(&numa, used, 4), NUMA_NONE);
}

static void test_nodes_off_line_or_without_cpus_or_memory_are_seen_as_such(void **state)
{
    (void)state;
    numa_t numa;
    put(NODES "/online", "0,2-4\n"); /* 1 is off line, 4 is memory without CPUs */
    put(NODES "/has_memory", "0,3-4\n");
    put(NODES "/node0/cpulist", "0-1\n");
    put(NODES "/node1/cpulist", "2-3\n");
    put(NODES "/node2/cpulist", "4-9\n");
    put(NODES "/node3/cpulist", "10-12\n");
    put(NODES "/node4/cpulist", "\n");
    numa_read(root, &numa);
    assert_int_equal(numa.n, 3);
    assert_true(numa.nodes[0].id == 0 && numa.nodes[0].n_cpus == 2 && numa.nodes[0].has_memory);
    assert_true(numa.nodes[1].id == 2 && numa.nodes[1].n_cpus == 6 && !numa.nodes[1].has_memory);
    assert_true(numa.nodes[2].id == 3 && numa.nodes[2].n_cpus == 3 && numa.nodes[2].has_memory);
}

/* Nodes 10, 11, … of so many CPUs. */
static numa_t nodes_of(uint32_t n, const uint32_t *cpus)
{
    numa_t numa = {.n = n};
    for (uint32_t i = 0; i < n; i++)
        numa.nodes[i] = (numa_node_t){.id = 10 + i, .n_cpus = cpus[i], .has_memory = true};
    return numa;
}

static uint32_t choose_and_use(const numa_t *numa, uint32_t *used, uint32_t threads)
{
    uint32_t id = numa_choose(numa, used, threads), i = numa_index(numa, id);
    if (i < numa->n)
        used[i] += threads;
    return id;
}

static void test_ranks_are_spread_over_four_nodes_and_then_fill_them_up(void **state)
{
    (void)state;
    const numa_t numa = nodes_of(4, (const uint32_t[]){8, 8, 8, 8});
    uint32_t used[NUMA_NODES_MAX] = {0};
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t i = 0; i < 4; i++)
            assert_int_equal(choose_and_use(&numa, used, 4), 10 + i);
    /* All are full: one more waits for CPUs wherever it is, and has at least its memory near. */
    assert_int_equal(choose_and_use(&numa, used, 4), 10);
    assert_int_equal(choose_and_use(&numa, used, 4), 11);
}

static void test_uneven_nodes_get_what_fits_into_them(void **state)
{
    (void)state;
    const numa_t numa = nodes_of(3, (const uint32_t[]){4, 12, 2});
    uint32_t used[NUMA_NODES_MAX] = {0};
    assert_int_equal(choose_and_use(&numa, used, 4), 11);
    assert_int_equal(choose_and_use(&numa, used, 4), 11); /* 8 free there, 4 in the first */
    assert_int_equal(choose_and_use(&numa, used, 4), 10); /* equal: the first */
    assert_int_equal(choose_and_use(&numa, used, 2), 11);
    assert_int_equal(choose_and_use(&numa, used, 2), 11);
    assert_int_equal(choose_and_use(&numa, used, 2), 12);
}

static void test_a_rank_that_no_node_can_hold_is_not_bound(void **state)
{
    (void)state;
    const numa_t numa = nodes_of(2, (const uint32_t[]){8, 8});
    uint32_t used[NUMA_NODES_MAX] = {0};
    assert_int_equal(numa_choose(&numa, used, 9), NUMA_NONE);
    assert_int_equal(numa_choose(&numa, used, 8), 10);
    /* Five CPUs are free in all and no node has four of them: threads that wait for a CPU would
     * cost more than memory that is far. */
    used[0] = 5, used[1] = 6;
    assert_int_equal(numa_choose(&numa, used, 4), NUMA_NONE);
    assert_int_equal(numa_choose(&numa, used, 3), 10);
    used[1] = 8;
    assert_int_equal(numa_choose(&numa, used, 4), 10);
}

/* On a thread of its own, whose binding ends with it. The made-up machine has the real CPUs, each in
 * a node of its own, and memory in node 0 alone, which every machine has. */
static void *bind_threads(void *argument)
{
    uint32_t *failures = argument;
    cpu_set_t own, mine;
    numa_t real;
    int mode = -1;
    unsigned long nodes[16] = {0};
    if (numa_bind(root, 5) != STATUS_NOT_FOUND || !strstr(status_text(), "node 5"))
        *failures += 1;
    if (numa_bind(root, 1) != STATUS_OK)
        *failures += 2;
    CPU_ZERO(&own);
    CPU_SET(1, &own);
    if (sched_getaffinity(0, sizeof mine, &mine) != 0 || !CPU_EQUAL(&mine, &own))
        *failures += 4;
    if (syscall(SYS_get_mempolicy, &mode, nodes, 1024ul, NULL, 0) == 0 && mode != MPOL_DEFAULT)
        *failures += 8; /* node 1 has no memory to prefer */
    numa_read("", &real);
    if (numa_index(&real, 0) == real.n)
        return NULL;
    status_t status = numa_bind(root, 0);
    CPU_ZERO(&own);
    CPU_SET(0, &own);
    if (sched_getaffinity(0, sizeof mine, &mine) != 0 || !CPU_EQUAL(&mine, &own))
        *failures += 16;
    if (status == STATUS_UNSUPPORTED) /* as in containers that may not choose their memory */
        return NULL;
    if (status != STATUS_OK ||
        syscall(SYS_get_mempolicy, &mode, nodes, 1024ul, NULL, 0) != 0 ||
        mode != MPOL_PREFERRED || nodes[0] != 1)
        *failures += 32;
    return NULL;
}

static void test_binding_sets_the_cpus_and_the_memory_of_threads_to_come(void **state)
{
    (void)state;
    cpu_set_t mine;
    assert_int_equal(sched_getaffinity(0, sizeof mine, &mine), 0);
    if (!CPU_ISSET(0, &mine) || !CPU_ISSET(1, &mine))
        skip();
    put(NODES "/online", "0-1\n");
    put(NODES "/has_memory", "0\n");
    put(NODES "/node0/cpulist", "0\n");
    put(NODES "/node1/cpulist", "1\n");
    uint32_t failures = 0;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, bind_threads, &failures), 0);
    pthread_join(thread, NULL);
    assert_int_equal(failures, 0);
}

int main(void)
{
#define IN_ROOT(test) cmocka_unit_test_setup_teardown(test, make_root, drop_root)
    const struct CMUnitTest tests[] = {
        IN_ROOT(test_a_system_that_does_not_tell_has_no_nodes_and_binds_nothing),
        IN_ROOT(test_two_nodes_have_the_cpus_that_the_system_gives_them),
        IN_ROOT(test_cpus_off_line_or_of_other_cpusets_do_not_count),
        IN_ROOT(test_nodes_off_line_or_without_cpus_or_memory_are_seen_as_such),
        cmocka_unit_test(test_ranks_are_spread_over_four_nodes_and_then_fill_them_up),
        cmocka_unit_test(test_uneven_nodes_get_what_fits_into_them),
        cmocka_unit_test(test_a_rank_that_no_node_can_hold_is_not_bound),
        IN_ROOT(test_binding_sets_the_cpus_and_the_memory_of_threads_to_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
