/* Step plans as bytes: what is written is what is read, and nothing malformed gets through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/engine/step_plan.h"

static const step_limits_t limits = {.vocab = 100, .context_max = 64, .n_blocks = 8,
                                     .pools = 2};

static step_blocks_t blocks_of_slots;

/* As the first plan of an epoch. */
static status_t read_plan(const buffer_t *bytes, arena_t *arena, step_plan_t *out)
{
    step_blocks_clear(&blocks_of_slots);
    return step_plan_read(bytes->data, bytes->size, &limits, &blocks_of_slots, arena, out);
}

static void write_example(buffer_t *out)
{
    static const uint32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 99};
    static const uint32_t blocks[] = {7, 0, 3};
    static const sampling_bias_t bias[] = {{3, -1.5f}, {99, 2.0f}};
    uint32_t closes[] = {4, 5};
    step_open_t open = {.slot = 2, .choice = 1, .n_prompt = 17, .n_produced = 1, .ids = ids};
    open.sampling = sampling_default;
    open.sampling.temperature = 0.5f;
    open.sampling.seed = 0x123456789abcdefull;
    open.sampling.n_bias = 2;
    open.sampling.bias = bias;
    step_entry_t entries[] = {
        {.slot = 2,
         .position = 0,
         .n_tokens = 18,
         .n_blocks = 2,
         .n_logits = 3,
         .sample = true,
         .want_logits = true,
         .ids = ids,
         .blocks = blocks},
        {.slot = 0, .position = 32, .n_tokens = 1, .n_blocks = 3, .ids = ids, .blocks = blocks},
        {.slot = 1,
         .pool = 1,
         .position = 40,
         .n_tokens = 3,
         .n_blocks = 3,
         .n_logits = 3,
         .sample = true,
         .n_draft = 2,
         .ids = ids,
         .blocks = blocks},
    };
    step_plan_t plan = {.kind = STEP_RUN,
                        .step = 77,
                        .n_closes = 2,
                        .n_opens = 1,
                        .n_entries = 3,
                        .closes = closes,
                        .opens = &open,
                        .entries = entries};
    step_plan_write(&plan, out);
}

static void test_a_plan_is_read_as_it_was_written(void **state)
{
    (void)state;
    buffer_t bytes = {0}, again = {0};
    arena_t arena = {0};
    step_plan_t plan;
    write_example(&bytes);
    assert_int_equal(read_plan(&bytes, &arena, &plan), STATUS_OK);
    assert_int_equal(plan.step, 77);
    assert_int_equal(plan.n_tokens, 22);
    assert_int_equal(plan.n_blocks, 8);
    assert_int_equal(plan.n_logits, 6);
    assert_int_equal(plan.n_samples, 4);
    assert_int_equal(plan.entries[2].n_draft, 2);
    assert_true(plan.entries[1].pool == 0 && plan.entries[2].pool == 1);
    assert_int_equal(plan.entries[0].ids[17], 99);
    assert_true(plan.entries[0].want_logits && plan.entries[0].sample && !plan.entries[1].sample);
    assert_int_equal(plan.entries[1].blocks[2], 3);
    assert_true(plan.opens[0].sampling.seed == 0x123456789abcdefull);
    assert_int_equal(plan.opens[0].sampling.bias[1].id, 99);
    step_plan_write(&plan, &again);
    assert_int_equal(again.size, bytes.size);
    assert_memory_equal(again.data, bytes.data, bytes.size);
    buffer_release(&bytes);
    buffer_release(&again);
    arena_release(&arena);
}

/* Reads a plan of one entry of slot 0 after those before it. */
static status_t read_entry_of(uint32_t position, uint32_t n_told, const uint32_t *blocks,
                              const step_open_t *open, size_t *size_out, step_entry_t *out)
{
    static const uint32_t ids[1] = {5};
    static arena_t arena;
    buffer_t bytes = {0};
    step_entry_t entry = {.position = position, .n_tokens = 1, .n_blocks = position / 16 + 1,
                          .n_told = n_told, .ids = ids, .blocks = blocks};
    step_plan_t plan = {.kind = STEP_RUN, .step = 1, .n_entries = 1, .entries = &entry};
    plan.n_opens = open != NULL;
    plan.opens = (step_open_t *)(uintptr_t)open;
    step_plan_write(&plan, &bytes);
    arena_release(&arena);
    status_t status = step_plan_read(bytes.data, bytes.size, &limits, &blocks_of_slots, &arena,
                                     &plan);
    *size_out = bytes.size;
    if (status == STATUS_OK)
        *out = plan.entries[0];
    buffer_release(&bytes);
    arena_release(&arena);
    return status;
}

static void test_each_block_is_named_once(void **state)
{
    (void)state;
    static const uint32_t ids[] = {1}, blocks[] = {7, 0, 3, 5}, others[] = {2, 4, 6, 1};
    const step_open_t open = {.n_prompt = 1, .ids = ids, .sampling = sampling_default};
    step_entry_t entry = {0};
    size_t whole, next, grown;
    step_blocks_clear(&blocks_of_slots);
    assert_int_equal(read_entry_of(33, 0, blocks, NULL, &whole, &entry), STATUS_OK);
    assert_memory_equal(entry.blocks, blocks, 3 * sizeof *blocks);
    /* What was told is known, whatever stands there now. */
    assert_int_equal(read_entry_of(34, 3, others, NULL, &next, &entry), STATUS_OK);
    assert_memory_equal(entry.blocks, blocks, 3 * sizeof *blocks);
    assert_int_equal(whole - next, 3 * sizeof *blocks);
    assert_int_equal(read_entry_of(48, 3, blocks, NULL, &grown, &entry), STATUS_OK);
    assert_memory_equal(entry.blocks, blocks, 4 * sizeof *blocks);
    assert_int_equal(grown - next, sizeof *blocks);
    /* It came back after a preemption with others. */
    assert_int_equal(read_entry_of(20, 0, others, NULL, &next, &entry), STATUS_OK);
    assert_memory_equal(entry.blocks, others, 2 * sizeof *blocks);
    /* Beyond what was told there is nothing; nor for another sequence in the slot, nor in another
     * epoch. */
    assert_int_equal(read_entry_of(40, 3, blocks, NULL, &next, &entry), STATUS_INVALID);
    assert_int_equal(read_entry_of(20, 2, blocks, &open, &next, &entry), STATUS_INVALID);
    assert_int_equal(read_entry_of(20, 0, blocks, &open, &next, &entry), STATUS_OK);
    step_blocks_clear(&blocks_of_slots);
    assert_int_equal(read_entry_of(20, 2, blocks, NULL, &next, &entry), STATUS_INVALID);
    step_blocks_release(&blocks_of_slots);
}

static void test_every_truncation_is_refused(void **state)
{
    (void)state;
    buffer_t bytes = {0};
    write_example(&bytes);
    for (size_t n = 0; n < bytes.size; n++) {
        arena_t arena = {0};
        step_plan_t plan;
        uint8_t *cut = malloc(n ? n : 1); /* of its own size, so that a read beyond it is seen */
        memcpy(cut, bytes.data, n);
        assert_int_equal(read_plan(&(buffer_t){.data = cut, .size = n}, &arena, &plan), STATUS_INVALID);
        free(cut);
        arena_release(&arena);
    }
    buffer_append(&bytes, "x", 1);
    arena_t arena = {0};
    step_plan_t plan;
    assert_int_equal(read_plan(&bytes, &arena, &plan),
                     STATUS_INVALID);
    arena_release(&arena);
    buffer_release(&bytes);
}

/* Any plan that is accepted after one word changed keeps every number inside its limits. */
static void test_a_changed_word_is_refused_or_harmless(void **state)
{
    (void)state;
    static const uint32_t values[] = {0,   1,   2,    17,         64,         65,
                                      100, 512, 1024, 0x7fffffff, 0x80000000, ~0u};
    buffer_t bytes = {0};
    write_example(&bytes);
    for (size_t at = 0; at + 4 <= bytes.size; at += 4)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            arena_t arena = {0};
            step_plan_t plan;
            uint32_t old;
            memcpy(&old, bytes.data + at, 4);
            memcpy(bytes.data + at, &values[v], 4);
            if (read_plan(&bytes, &arena, &plan) == STATUS_OK)
                for (uint32_t e = 0; e < plan.n_entries; e++) {
                    const step_entry_t *entry = &plan.entries[e];
                    assert_true(entry->slot < STEP_SLOTS_MAX && entry->n_logits <= entry->n_tokens);
                    assert_true(entry->pool < limits.pools);
                    assert_true(e == 0 || plan.entries[e - 1].pool <= entry->pool);
                    assert_true(entry->position + entry->n_tokens <= limits.context_max);
                    assert_true(entry->n_draft == 0 || entry->n_logits == entry->n_draft + 1);
                    assert_true(entry->n_draft == 0 || (entry->sample && !entry->want_logits));
                    for (uint32_t i = 0; i < entry->n_tokens; i++)
                        assert_true(entry->ids[i] < limits.vocab);
                    for (uint32_t i = 0; i < entry->n_blocks; i++)
                        assert_true(entry->blocks[i] < limits.n_blocks);
                }
            memcpy(bytes.data + at, &old, 4);
            arena_release(&arena);
        }
    buffer_release(&bytes);
}

static void test_a_plan_of_heads_has_a_step_and_no_entries(void **state)
{
    (void)state;
    step_plan_t plan = {.kind = STEP_HEAD, .step = 12}, got;
    buffer_t bytes = {0};
    arena_t arena = {0};
    step_plan_write(&plan, &bytes);
    assert_int_equal(read_plan(&bytes, &arena, &got), STATUS_OK);
    assert_int_equal(got.kind, STEP_HEAD);
    assert_int_equal(got.step, 12);
    assert_int_equal(got.n_entries, 0);
    plan.kind = (step_kind_t)(STEP_HEAD + 1);
    buffer_clear(&bytes);
    step_plan_write(&plan, &bytes);
    assert_int_equal(read_plan(&bytes, &arena, &got), STATUS_INVALID);
    buffer_release(&bytes);
    arena_release(&arena);
}

static void test_a_result_is_read_as_it_was_written_and_checked(void **state)
{
    (void)state;
    step_drawn_t drawn[2] = {{.slot = 3, .sampled = {.id = 42, .logprob = -0.5f, .n_top = 2}},
                             {.slot = 1, .failed = true}};
    drawn[0].sampled.top[1] = (token_logprob_t){7, -2.0f};
    step_result_t result = {.step = 9, .took_ns = 1ull << 40, .n = 2, .drawn = drawn}, got;
    buffer_t bytes = {0};
    arena_t arena = {0};
    step_result_write(&result, &bytes);
    assert_int_equal(step_result_read(bytes.data, bytes.size, 100, &arena, &got), STATUS_OK);
    assert_int_equal(got.step, 9);
    assert_true(got.took_ns == 1ull << 40);
    assert_int_equal(got.drawn[0].sampled.id, 42);
    assert_int_equal(got.drawn[0].sampled.top[1].id, 7);
    assert_true(got.drawn[1].failed && !got.drawn[0].failed);
    for (size_t n = 0; n < bytes.size; n++)
        assert_int_equal(step_result_read(bytes.data, n, 100, &arena, &got), STATUS_INVALID);
    assert_int_equal(step_result_read(bytes.data, bytes.size, 42, &arena, &got), STATUS_INVALID);
    arena_release(&arena);
    buffer_release(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_block_is_named_once),
        cmocka_unit_test(test_a_plan_is_read_as_it_was_written),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_a_changed_word_is_refused_or_harmless),
        cmocka_unit_test(test_a_plan_of_heads_has_a_step_and_no_entries),
        cmocka_unit_test(test_a_result_is_read_as_it_was_written_and_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
