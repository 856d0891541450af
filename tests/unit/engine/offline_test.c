/* The offline command's edges: bad input is named, and a rank that dies ends the run with its name.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "eval_run.h"

static char *model;
static json_t *ids;

static void expect_refused(json_t *take_ids, const char *words)
{
    char text[4096];
    eval_args_t args = {.model = model, .ids = take_ids};
    assert_int_equal(eval_run_failing(&args, text, sizeof text), 2);
    if (!strstr(text, words))
        fail_msg("\"%s\" does not say \"%s\"", text, words);
    json_decref(take_ids);
}

static void test_bad_prompts_are_named(void **state)
{
    (void)state;
    expect_refused(json_pack("[[i,i],[i]]", 1, 2, 320), "id 0 of prompt 1");
    expect_refused(json_pack("[[i],[]]", 1), "element 1");
    expect_refused(json_pack("{s:i}", "a", 1), "array");
    expect_refused(json_pack("[]"), "array");
    expect_refused(json_pack("[[f]]", 1.5), "integer");
}

static void test_bad_shapes_and_files_are_named(void **state)
{
    (void)state;
    eval_args_t args = {.model = "no-such-file.gguf", .ids = ids};
    char text[4096];
    assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
    assert_non_null(strstr(text, "no-such-file.gguf"));
    args.model = model;
    args.stages = 7; /* the model has 3 layers */
    assert_int_equal(eval_run_failing(&args, text, sizeof text), 2);
    args.stages = 0;
    args.isa = "neon";
    assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
    assert_non_null(strstr(text, "neon"));
}

static void test_last_and_sums_agree_with_the_whole(void **state)
{
    (void)state;
    eval_result_t whole, last;
    eval_args_t args = {.model = model, .ids = ids, .threads = 1, .greedy = 3};
    eval_run(&args, &whole);
    args.last = true;
    eval_run(&args, &last);
    assert_true(eval_hash(&whole) == eval_hash(&last));
    for (uint32_t i = 0; i < whole.n_prompts; i++) {
        assert_int_equal(last.prompts[i].rows, 1);
        assert_true(last.prompts[i].sum_logprob == whole.prompts[i].sum_logprob);
    }
    eval_release(&whole);
    eval_release(&last);
}

/* Both fail points stand in ranks of the last stage, which are children: when one dies or fails,
 * the command ends soon and says which one it was. */
static void test_a_rank_that_dies_ends_the_run_with_its_name(void **state)
{
    (void)state;
    eval_args_t args = {.model = model, .ids = ids, .tp = 2, .stages = 2, .threads = 1};
    char text[4096];
    struct timespec begin, end;
    const char *points[] = {"rank.sampled=kill", "rank.sampled=error", "rank.sampled=abort"};
    for (size_t i = 0; i < 6; i++) {
        args.failpoints = points[i % 3];
        args.head = i < 3 ? "last" : "shared";
        clock_gettime(CLOCK_MONOTONIC, &begin);
        assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
        clock_gettime(CLOCK_MONOTONIC, &end);
        assert_true(end.tv_sec - begin.tv_sec < 20); /* far below the step's time-out of 30 s */
        if (!strstr(text, "rank 2") && !strstr(text, "rank 3"))
            fail_msg("\"%s\" names neither rank 2 nor rank 3", text);
    }
}

/* The other ranks of a head that is shared wait for the part of one that fails. */
static void test_a_rank_that_fails_in_its_part_of_the_head_is_named(void **state)
{
    (void)state;
    eval_args_t args = {.model = model, .ids = ids, .tp = 2, .stages = 3, .threads = 1,
                        .head = "shared"};
    char text[4096], name[16];
    args.failpoints = "rank.head=error";
    assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
    assert_non_null(strstr(text, "head of step 1: fail point rank.head"));
    bool named = false;
    for (int rank = 0; rank < 4; rank++) {
        snprintf(name, sizeof name, "rank %d", rank);
        named |= strstr(text, name) != NULL;
    }
    assert_true(named);
    args.head = "everywhere";
    assert_int_equal(eval_run_failing(&args, text, sizeof text), 2);
    assert_non_null(strstr(text, "auto, last or shared"));
}

static int open_all(void **state)
{
    (void)state;
    model = eval_golden("gguf-llama-q4_0/model.gguf");
    ids = json_pack("[[i,i,i,i],[i]]", 5, 23, 100, 319, 7);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    free(model);
    json_decref(ids);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_prompts_are_named),
        cmocka_unit_test(test_bad_shapes_and_files_are_named),
        cmocka_unit_test(test_last_and_sums_agree_with_the_whole),
        cmocka_unit_test(test_a_rank_that_dies_ends_the_run_with_its_name),
        cmocka_unit_test(test_a_rank_that_fails_in_its_part_of_the_head_is_named),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
