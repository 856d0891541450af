/* The text of a choice, and the tables and heaps beneath the machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/core/table.h"
#include "coordinator/core/text_log.h"
#include "tests/sim/sim.h"

enum { A = 0, B = 1, S = 31, ST = 32, OP = 33, PB = 34, TOPB = 36, EMOJI = 27 };

static text_log_t made_of(const uint32_t *ids, size_t n, const char *stop, size_t last)
{
    text_log_t log;
    char *strings[] = {(char *)(uintptr_t)stop};
    text_stops_t stops = {strings, *stop != 0};
    text_log_start(&log);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(text_log_push(&log, oracle_tokenizer(), &stops, ids[i], i + 1 == last),
                         STATUS_OK);
    return log;
}

static void assert_released(const text_log_t *log, size_t n, const char *text)
{
    assert_int_equal(text_log_released(log, n), strlen(text));
    assert_memory_equal(buffer_text(&log->text), text, strlen(text));
}

static void test_a_stop_string_across_tokens_ends_the_text_before_it(void **state)
{
    (void)state;
    const uint32_t ids[] = {A, ST, OP, PB, B}; /* "a" "ST" "OP" "P!" */
    text_log_t log = made_of(ids, 5, "STOPP", 0);
    assert_true(log.stopped);
    assert_int_equal(log.n, 4); /* the id that completes it counts, later ones do not */
    assert_released(&log, 4, "a");
    text_log_release(&log);
}

static void test_what_may_become_a_stop_string_is_held_back_until_it_cannot(void **state)
{
    (void)state;
    const uint32_t ids[] = {A, S, B}; /* "S" may begin "STOP!"; "b" shows that it does not */
    text_log_t log = made_of(ids, 3, "STOP!", 0);
    assert_released(&log, 1, "a");
    assert_released(&log, 2, "a");
    assert_released(&log, 3, "aSb");
    text_log_release(&log);
}

static void test_a_character_cut_into_tokens_is_released_whole(void **state)
{
    (void)state;
    const uint32_t ids[] = {A, EMOJI, EMOJI + 1, EMOJI + 2, EMOJI + 3, B};
    text_log_t log = made_of(ids, 6, "", 0);
    for (size_t n = 1; n <= 4; n++)
        assert_released(&log, n, "a");
    assert_released(&log, 5, "a\xF0\x9F\x98\x80");
    text_log_release(&log);
}

static void test_the_last_id_releases_what_was_held(void **state)
{
    (void)state;
    const uint32_t held[] = {A, S}, broken[] = {A, EMOJI, EMOJI + 1};
    text_log_t log = made_of(held, 2, "STOP!", 2);
    assert_true(log.ended);
    assert_released(&log, 2, "aS");
    text_log_release(&log);
    log = made_of(broken, 3, "", 3);
    assert_released(&log, 3, "a\xEF\xBF\xBD");
    text_log_release(&log);
}

static void test_the_text_after_n_ids_is_that_of_a_replay_of_n_ids(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 200; seed++) {
        request_t r;
        oracle_text_t want;
        request_draw(seed, false, &r);
        oracle_text(r.seed, 0, r.max_tokens, r.stop, &want);
        text_log_t whole = made_of(want.ids, want.n, r.stop, want.n);
        assert_int_equal(whole.n, want.n);
        assert_released(&whole, want.n, want.text);
        for (size_t n = 1; n < want.n; n++) {
            text_log_t replay = made_of(want.ids, n, r.stop, 0);
            assert_int_equal(text_log_released(&replay, n), text_log_released(&whole, n));
            text_log_release(&replay);
        }
        text_log_release(&whole);
    }
}

static void test_an_id_outside_of_the_vocabulary_changes_nothing(void **state)
{
    (void)state;
    const uint32_t ids[] = {A};
    text_log_t log = made_of(ids, 1, "", 0);
    text_stops_t none = {0};
    assert_int_equal(text_log_push(&log, oracle_tokenizer(), &none, 999999, false), STATUS_INVALID);
    assert_int_equal(log.n, 1);
    text_log_release(&log);
}

static void test_a_table_finds_what_was_put_after_any_removals(void **state)
{
    (void)state;
    static char keys[3000][8];
    table_t table = {0};
    for (int i = 0; i < 3000; i++) {
        snprintf(keys[i], sizeof keys[i], "k%d", i);
        table_put(&table, keys[i], strlen(keys[i]), keys[i]);
    }
    for (int i = 0; i < 3000; i += 2)
        assert_ptr_equal(table_remove(&table, keys[i], strlen(keys[i])), keys[i]);
    for (int i = 0; i < 3000; i++)
        assert_ptr_equal(table_get(&table, keys[i], strlen(keys[i])), i % 2 ? keys[i] : NULL);
    size_t at = 0, n = 0;
    while (table_next(&table, &at))
        n++;
    assert_int_equal(n, 1500);
    table_release(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_stop_string_across_tokens_ends_the_text_before_it),
        cmocka_unit_test(test_what_may_become_a_stop_string_is_held_back_until_it_cannot),
        cmocka_unit_test(test_a_character_cut_into_tokens_is_released_whole),
        cmocka_unit_test(test_the_last_id_releases_what_was_held),
        cmocka_unit_test(test_the_text_after_n_ids_is_that_of_a_replay_of_n_ids),
        cmocka_unit_test(test_an_id_outside_of_the_vocabulary_changes_nothing),
        cmocka_unit_test(test_a_table_finds_what_was_put_after_any_removals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
