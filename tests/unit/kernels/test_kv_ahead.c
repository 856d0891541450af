/* Memory of a KV cache is present before a step comes to it, in every layer, and not much more of it
 * than that. What is present is asked of the system (mincore). */
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "kernels/cpu/pages.h"
#include "support.h"

/* 8 KiB a layer and block, 16 MiB a layer: eight huge pages. */
enum { LAYERS = 3, HEADS = 2, DIM = 64, BLOCKS = 2048, WAIT_MS = 20000 };
enum { BLOCKS_AHEAD = 192 }; /* three quarters of a huge page */

static bool is_present(const kkv_t *kv, uint32_t layer, uint32_t block)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = (uintptr_t)kv_page(&kv->pages, layer, block, 0) / page * page;
    unsigned char present = 0;
    assert_int_equal(mincore((void *)at, page, &present), 0);
    return present & 1;
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
    assert_ok(f.ops->kv_open(f.device, &shape, &kv));
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
        assert_false(is_present(kv, 0, block + BLOCKS_AHEAD + 512)); /* two huge pages behind that */
    }
    /* Closed while there is work. */
    uint32_t blocks[] = {BLOCKS - 1};
    kbatch_row_t row = {.position = 1};
    kbatch_table_t table = {blocks, 1};
    assert_ok(f.ops->batch_set(f.queue, batch, &row, 1, &table, 1));
    f.ops->batch_release(batch);
    f.ops->kv_close(kv);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_there_before_the_step_that_needs_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
