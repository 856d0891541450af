/* Memory of a KV cache is present before a step comes to it, in every layer, and while steps run
 * not much more of it than that; an idle device makes more of it present, up to a limit. What is
 * present is asked of the system (mincore). */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "kernels/cpu/pages.h"
#include "support.h"

/* 8 KiB a layer and block, 16 MiB a layer: eight huge pages. */
enum { LAYERS = 3, HEADS = 2, DIM = 64, BLOCKS = 2048, WAIT_MS = 20000 };
enum { BLOCKS_AHEAD = 128 }; /* half of a huge page, in the layer that is least far ahead */
/* As far as an idle device goes in a cache of one layer, and room behind that. */
enum { BLOCKS_IDLE = (256 << 20) / 8192, BLOCKS_LARGE = BLOCKS_IDLE + 4096 };

static bool is_present(const kkv_t *kv, uint32_t layer, uint32_t block)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = (uintptr_t)kv_page(&kv->pages, layer, block, 0) / page * page;
    unsigned char present = 0;
    assert_int_equal(mincore((void *)at, page, &present), 0);
    return present & 1;
}

/* Keeps a device's team busy until it is told to stop. */
typedef struct {
    pool_t *pool;
    pthread_t thread;
    atomic_bool stop;
} busy_t;

static void wait_for_stop(void *arg, uint32_t thread, uint32_t n_threads)
{
    busy_t *busy = arg;
    (void)thread;
    (void)n_threads;
    while (!atomic_load(&busy->stop))
        usleep(1000);
}

static void *run_busy(void *arg)
{
    busy_t *busy = arg;
    pool_run(busy->pool, wait_for_stop, busy);
    return NULL;
}

static void begin_busy(busy_t *busy, const kdevice_t *device)
{
    *busy = (busy_t){.pool = device->pool};
    assert_int_equal(pthread_create(&busy->thread, NULL, run_busy, busy), 0);
    while (pool_runs(busy->pool) % 2 == 0)
        usleep(100);
}

static void end_busy(busy_t *busy)
{
    atomic_store(&busy->stop, true);
    pthread_join(busy->thread, NULL);
}

static bool are_present(const kkv_t *kv, uint32_t block)
{
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        if (!is_present(kv, layer, block))
            return false;
    return true;
}

static bool become_present(const kkv_t *kv, uint32_t block)
{
    for (uint64_t end_ms = clock_ms() + WAIT_MS; clock_ms() < end_ms; usleep(1000))
        if (are_present(kv, block))
            return true;
    return false;
}

static bool system_can(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    bool can = madvise(map, page, 23 /* MADV_POPULATE_WRITE */) == 0;
    munmap(map, page);
    return can;
}

static void test_memory_is_there_before_the_step_that_needs_it(void **state)
{
    (void)state;
    if (!system_can())
        skip();
    fixture_t f = open_fixture(NULL, 2, KMODE_NATIVE, KQUEUE_NOW);
    kkv_shape_t shape = {
        .n_layers = LAYERS, .n_kv_heads = HEADS, .head_dim = DIM, .n_blocks = BLOCKS};
    kkv_t *kv = NULL;
    kbatch_t *batch = NULL;
    busy_t busy;
    /* Busy from the beginning, before the device counts as idle; a slow machine may be too late. */
    for (int tries = 0; kv == NULL && tries < 20; tries++) {
        assert_ok(f.ops->kv_open(f.device, &shape, &kv));
        begin_busy(&busy, f.device);
        usleep(100000); /* it would have come far meanwhile */
        if (!is_present(kv, 0, 512))
            break;
        end_busy(&busy);
        f.ops->kv_close(kv);
        kv = NULL;
    }
    assert_non_null(kv);
    assert_ok(f.ops->batch_new(f.device, 4, 8, &batch));
    assert_int_equal(kv_layer_block_bytes(&kv->pages), 8192);
    assert_true(become_present(kv, 0));
    /* Steps walk through it; each finds what the next hundred will need, wherever the highest block
     * stands in its table. */
    for (uint32_t block = 100; block + BLOCKS_AHEAD < BLOCKS - 600; block += 150) {
        uint32_t blocks[] = {3, 3};
        blocks[block / 150 % 2] = block;
        kbatch_row_t row = {.position = 20};
        kbatch_table_t table = {blocks, 2};
        assert_ok(f.ops->batch_set(f.queue, batch, &row, 1, &table, 1));
        assert_true(become_present(kv, block + BLOCKS_AHEAD));
        uint32_t behind = block + 192 + 512; /* two huge pages and more behind that */
        assert_false(is_present(kv, 0, behind));
    }
    /* Closed while there is work. */
    uint32_t blocks[] = {BLOCKS - 1};
    kbatch_row_t row = {.position = 1};
    kbatch_table_t table = {blocks, 1};
    assert_ok(f.ops->batch_set(f.queue, batch, &row, 1, &table, 1));
    f.ops->batch_release(batch);
    f.ops->kv_close(kv);
    end_busy(&busy);
    close_fixture(&f);
}

static void test_an_idle_device_makes_more_of_it_present_up_to_a_limit(void **state)
{
    (void)state;
    if (!system_can())
        skip();
    fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_NOW);
    kkv_shape_t shape = {
        .n_layers = 1, .n_kv_heads = HEADS, .head_dim = DIM, .n_blocks = BLOCKS_LARGE};
    kkv_t *kv = NULL;
    assert_ok(f.ops->kv_open(f.device, &shape, &kv));
    uint64_t end_ms = clock_ms() + WAIT_MS;
    while (!is_present(kv, 0, BLOCKS_IDLE - 1) && clock_ms() < end_ms)
        usleep(1000);
    assert_true(is_present(kv, 0, BLOCKS_IDLE - 1));
    usleep(20000);
    assert_false(is_present(kv, 0, BLOCKS_IDLE + 512));
    /* Steps use three quarters of it; then the device is idle again. */
    kbatch_t *batch = NULL;
    uint32_t blocks[] = {BLOCKS_IDLE / 4 * 3};
    kbatch_row_t row = {.position = 1};
    kbatch_table_t table = {blocks, 1};
    assert_ok(f.ops->batch_new(f.device, 4, 8, &batch));
    assert_ok(f.ops->batch_set(f.queue, batch, &row, 1, &table, 1));
    end_ms = clock_ms() + WAIT_MS;
    while (!is_present(kv, 0, BLOCKS_LARGE - 1) && clock_ms() < end_ms)
        usleep(1000);
    assert_true(is_present(kv, 0, BLOCKS_LARGE - 1));
    f.ops->batch_release(batch);
    f.ops->kv_close(kv);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_there_before_the_step_that_needs_it),
        cmocka_unit_test(test_an_idle_device_makes_more_of_it_present_up_to_a_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
