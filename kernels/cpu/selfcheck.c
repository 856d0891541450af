/* See selfcheck.h. The inputs come from a fixed generator, so every machine checks the same
 * vectors. They hold what tells implementations apart: blocks cut by leaf edges, padded segments,
 * columns that do not fill a panel, odd row counts, subnormals, ties, a partly filled tile and a
 * second chunk of keys.
 *
 * What ref makes of them is the same bits on every machine, so it is not computed at each start,
 * where it would take two thirds of the time, but recorded (selfcheck_recorded.c). */
#include "kernels/cpu/selfcheck.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/cpu/fpmode.h"
#include "kernels/numerics.h"

enum {
    CHECK_K = 352,
    CHECK_N = 40,
    CHECK_ROWS = 40,
    CHECK_TILE_ROWS = 37, /* of both halves of tile registers, and a second go */
    CHECK_KEYS = 590,
    CHECK_DIM = 80,
    CHECK_BLOCKS = (CHECK_KEYS + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS,
};

typedef struct {
    const klevel_t *level;
    uint64_t state;
    kdevice_t device;
    uint64_t *answers_out; /* NULL: they are compared with the recorded ones */
    uint32_t n_answers;
    const char *bad; /* the first kernel with another answer */
} check_t;

/* FNV-1a in steps of eight bytes; each step can be undone, so no single wrong byte is lost. */
static uint64_t digest_of_answer(const void *bytes, size_t n)
{
    uint64_t digest = 14695981039346656037u + n;
    for (const uint8_t *at = bytes; n > 0;) {
        size_t step = n < sizeof digest ? n : sizeof digest;
        uint64_t word = 0;
        memcpy(&word, at, step);
        digest = (digest ^ word) * 1099511628211u;
        digest ^= digest >> 32;
        at += step, n -= step;
    }
    return digest;
}

static void answer(check_t *check, const char *kernel, const void *bytes, size_t n)
{
    uint64_t digest = digest_of_answer(bytes, n);
    uint32_t i = check->n_answers++;
    CHECK(i < SELFCHECK_ANSWERS_MAX);
    if (check->answers_out != NULL)
        check->answers_out[i] = digest;
    else if (check->bad == NULL && digest != selfcheck_recorded[i])
        check->bad = kernel;
}

static uint32_t next_u32(check_t *check)
{
    check->state = check->state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(check->state >> 32);
}

/* In (-1, 1), now and then subnormal or zero. */
static float next_float(check_t *check)
{
    uint32_t bits = next_u32(check);
    float x = (float)(int32_t)bits * 0x1p-31f;
    switch (bits % 61) {
    case 0:
        return x * 0x1p-130f;
    case 1:
        return 0.0f;
    case 2:
        return (float)(int32_t)(x * 30) + 0.5f;
    default:
        return x;
    }
}

static void fill(check_t *check, float *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = next_float(check);
}

/* Makes a block of random bytes one of finite numbers: exponents below the top ones. `place` is the
 * row's number. */
static void tame(check_t *check, uint32_t qtype, uint64_t place, uint8_t *block)
{
    float x;
    switch (qtype) {
    case QTYPE_F32:
        x = next_float(check) * (place == 5 ? 0x1p-30f : 1.0f);
        memcpy(block, &x, sizeof x);
        return;
    case QTYPE_I8S:
    case QTYPE_F8S:
        x = next_float(check) * (place == 5 ? 0x1p-120f : 1.0f);
        memcpy(block, &x, sizeof x);
        for (uint32_t i = 4; qtype == QTYPE_F8S && i < sizeof(qtype_f8s_t); i++)
            block[i] = (block[i] & 0x7f) == 0x7f ? 0x7e : block[i];
        return;
    case QTYPE_MXFP4:
        block[0] = (uint8_t)(place == 5 ? 2 : 110 + block[0] % 20);
        return;
    case QTYPE_Q6_K:
        block[209] &= 0xab;
        return;
    case QTYPE_Q2_K:
        block[81] &= 0xab;
        block[83] &= 0xab;
        return;
    default:
        block[1] &= qtype == QTYPE_BF16 ? 0xbf : 0xab;
        if (qtype == QTYPE_Q4_1 || qtype == QTYPE_Q5_1 || qtype == QTYPE_Q4_K ||
            qtype == QTYPE_Q5_K)
            block[3] &= 0xab;
        if (qtype_is_z4(qtype))
            block[2] = qtype < QTYPE_S4 ? block[2] % (QTYPE_Z4_ZERO_MAX + 1) : 8;
    }
}

static uint8_t *make_rows(check_t *check, uint32_t qtype, uint32_t k, size_t *bytes_out)
{
    uint64_t row_bytes = 0;
    CHECK(qtype_row_bytes(qtype, k, &row_bytes));
    size_t bytes = row_bytes * CHECK_N, step = qtype_info(qtype)->block_bytes;
    uint8_t *rows = mem_new(bytes, 1);
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t four = next_u32(check);
        memcpy(rows + i, &four, bytes - i < 4 ? bytes - i : 4);
    }
    for (size_t i = 0; i < bytes; i += step)
        tame(check, qtype, i / row_bytes, rows + i);
    *bytes_out = bytes;
    return rows;
}

typedef struct {
    uint32_t type, n_rows, k;
} shape_t;

/* Input rows and the product of one weight type: of leaves whose edges cut the blocks of 32, or of
 * one leaf, where values are multiplied apart. */
static void check_matmul(check_t *check, const shape_t *shape, kmode_t mode, bool one_leaf)
{
    uint32_t qtype = shape->type, n_rows = shape->n_rows;
    const uint32_t cuts[] = {0, 72, shape->k / 2, shape->k / 4 * 3, shape->k}, whole[] = {0, shape->k};
    const uint32_t n_leaves = one_leaf ? 1 : 4;
    check->device.mode = mode;
    size_t bytes;
    uint8_t *rows = make_rows(check, qtype, shape->k, &bytes);
    kweight_part_t part = {.qtype = qtype, .rows = rows, .bytes = bytes, .n_rows = CHECK_N};
    kweight_spec_t spec = {.name = "self-check",
                           .parts = &part,
                           .n_parts = 1,
                           .k_total = shape->k,
                           .leaf_edges = one_leaf ? whole : cuts,
                           .n_leaves = n_leaves,
                           .leaf_first = 0,
                           .leaf_end = n_leaves};
    kweight_t *weight = NULL;
    CHECK(weight_pack(&check->device, &spec, &weight) == STATUS_OK);
    float x[CHECK_ROWS][CHECK_K], out[CHECK_ROWS][CHECK_N];
    fill(check, x[0], n_rows * CHECK_K);
    /* Row 1 is all subnormal and must count as zero; row 2 meets column 5 in subnormal products. */
    for (uint32_t i = 0; i < CHECK_K; i++) {
        x[1][i] *= 0x1p-126f;
        if (n_rows > 2)
            x[2][i] *= 0x1p-100f;
    }
    size_t input_bytes = weight->row_bytes * n_rows;
    uint8_t *input = map_pages(input_bytes);
    CHECK(input != NULL);
    uint32_t mode_before = fpmode_enter();
    for (uint32_t r = 0; r < n_rows; r++)
        (void)weight_quantize(check->level, weight, x[r], input + r * weight->row_bytes);
    kmatmul_t job = {.weight = weight, .input = input, .rows = n_rows, .out = out[0]};
    job.scratch = weight->parts[0].spread_bytes > 0 ? device_panel(&check->device, 0) : NULL;
    check->level->matmul(&job, 0, weight->n_panels, 0, n_rows);
    fpmode_leave(mode_before);
    answer(check, "quantize", input, input_bytes);
    answer(check, "matmul", out, n_rows * sizeof out[0]);
    unmap_pages(input, input_bytes);
    weight_release(weight);
    free(rows);
}

static void check_turns(check_t *check)
{
    enum { HALF = 29 }; /* no whole vector at its end */
    float turns[2 * HALF], out[2 * HALF];
    fill(check, turns, 2 * HALF);
    for (int pairs = KROPE_ADJACENT; pairs <= KROPE_HALVES; pairs++) {
        fill(check, out, 2 * HALF);
        check->level->turn((krope_pairs_t)pairs, turns, HALF, out);
        answer(check, "rope", out, sizeof out);
    }
}

static void check_rows(check_t *check)
{
    enum { N = 91, LENGTHS = 20 };
    float x[4][N], out[N], normed[LENGTHS][N] = {{0}};
    fill(check, x[0], 4 * N);
    (void)fpmode_enter(); /* selfcheck gives the caller's mode back */
    for (uint32_t i = 0; i < LENGTHS; i++) /* one sum alone may round to the same by luck */
        check->level->rmsnorm(x[0], x[1], N - i, 1e-5f, normed[i]);
    answer(check, "rmsnorm", normed, sizeof normed);
    for (uint32_t i = 0; i < N; i++)
        x[0][i] *= 100.0f;
    check->level->silu_mul(x[0], x[1], N, out);
    answer(check, "silu_mul", out, sizeof out);
    for (int kind = KACTIVATE_SILU; kind <= KACTIVATE_SILU_LIMIT; kind++) {
        kactivate_t what = {.kind = (kactivate_kind_t)kind, .alpha = 1.702f, .limit = 0.5f};
        check->level->activate(&what, x[0], x[1], N, out);
        answer(check, "activate", out, sizeof out);
    }
    memcpy(out, x[0], sizeof out);
    check->level->softcap(out, N, 30.0f);
    answer(check, "softcap", out, sizeof out);
    tree_program_t program;
    tree_run_t runs[] = {{0, 1}, {1, 3}};
    CHECK(tree_program(3, runs, 2, &program) == STATUS_OK);
    const float *inputs[] = {x[0], x[1], x[2]};
    check->level->tree_add(&program, inputs, x[3], x[2], out, 0, N);
    answer(check, "tree_add", out, sizeof out);
    check_turns(check);
}

/* The four calls differ in kind: plain rows, a list of keys, a window with sinks, a softcap. */
static void vary_call(kattend_t *job, const uint32_t *list, const float *sink)
{
    job->pass[0].list = job->n == 2 ? list : NULL;
    job->softcap = job->n == 4 ? 2.0f : 0.0f;
    for (uint32_t r = 0; job->n == 3 && r < job->n; r++) {
        job->pass[0].first[r] = 7 * r + 1;
        job->sinks[r] = sink + r;
    }
}

static void check_score(check_t *check, const kattend_t *call)
{
    float w[ATTEND_ROWS] = {0.5f, -1.25f, 2.0f, 0.75f}, q[ATTEND_ROWS][CHECK_DIM];
    float scores[CHECK_KEYS];
    fill(check, q[0], ATTEND_ROWS * CHECK_DIM);
    kscore_t job = {.pass = call->pass[0],
                    .scratch = call->scratch,
                    .n_heads = ATTEND_ROWS,
                    .scale = 0.3f,
                    .weight_scale = 1.5f,
                    .q = q[0],
                    .w = w,
                    .scores_out = scores};
    job.pass.list = NULL;
    job.pass.end[0] = CHECK_KEYS;
    check->level->score(&job);
    answer(check, "score", scores, sizeof scores);
}

static void fill_keys(check_t *check, kkv_t *kv, uint32_t blocks[CHECK_BLOCKS])
{
    float k[CHECK_DIM], v[CHECK_DIM];
    for (uint32_t i = 0; i < CHECK_KEYS; i++) {
        blocks[i / KKV_BLOCK_TOKENS] = CHECK_BLOCKS - 1 - i / KKV_BLOCK_TOKENS;
        fill(check, k, CHECK_DIM);
        fill(check, v, CHECK_DIM);
        (void)kv_put(&kv->pages, 0, blocks[i / KKV_BLOCK_TOKENS], 0, i % KKV_BLOCK_TOKENS, k, v);
    }
}

static void check_attention(check_t *check, kmode_t mode)
{
    check->device.mode = mode;
    kkv_shape_t shape = {
        .n_layers = 1, .n_kv_heads = 1, .head_dim = CHECK_DIM, .n_blocks = CHECK_BLOCKS};
    kkv_t *kv = NULL;
    CHECK(kv_open(&check->device, &shape, &kv) == STATUS_OK);
    uint32_t blocks[CHECK_BLOCKS], list[64];
    fill_keys(check, kv, blocks);
    float q[ATTEND_ROWS][CHECK_DIM], out[ATTEND_ROWS][CHECK_DIM];
    fill(check, q[0], ATTEND_ROWS * CHECK_DIM);
    for (uint32_t i = 0; i < 64; i++)
        list[i] = 9 * i + 1;
    uint8_t *scratch = map_pages(ATTEND_SCRATCH_BYTES);
    CHECK(scratch != NULL);
    uint32_t mode_before = fpmode_enter();
    for (uint32_t n = 1; n <= ATTEND_ROWS; n++) {
        kattend_t job = {.n_passes = 1, .scale = 3.0f, .n = n, .scratch = scratch};
        job.pass[0] = (kpass_t){.pages = &kv->pages,
                                .base = kv_page(&kv->pages, 0, 0, 0),
                                .blocks = blocks,
                                .block_stride = kv->pages.k_bytes + kv->pages.v_bytes};
        for (uint32_t r = 0; r < n; r++) {
            job.pass[0].end[r] = n == ATTEND_ROWS ? CHECK_KEYS - r * 37 : 61 + r;
            job.q[r] = q[r];
            job.out[r] = out[r];
        }
        vary_call(&job, list, q[0]);
        check->level->attend(&job);
        answer(check, "attention", out, n * sizeof out[0]);
        if (n == ATTEND_ROWS)
            check_score(check, &job);
    }
    fpmode_leave(mode_before);
    unmap_pages(scratch, ATTEND_SCRATCH_BYTES);
    kv_close(kv);
}

/* One type of each form; e4m3 and the forms with runs also with rows enough for a decoded panel.
 * Those whose kernels are others' with other codes have fewer columns of K. */
static const shape_t shapes[] = {
    {QTYPE_Q8_0, 7, 352}, {QTYPE_Q4_0, 7, 352},   {QTYPE_Q4_1, 7, 352},
    {QTYPE_BF16, 7, 352}, {QTYPE_F16, 7, 352},    {QTYPE_F32, 7, 352},
    {QTYPE_F8S, 3, 160},  {QTYPE_F8S, 9, 160},    {QTYPE_I8S, 7, 160},
    {QTYPE_Q5_0, 7, 160}, {QTYPE_Q5_1, 7, 160},   {QTYPE_Q5_K, 7, 256},
    {QTYPE_Q6_K, 7, 256}, {QTYPE_Q4_K, 7, 256},   {QTYPE_IQ4_NL, 7, 160},
    {QTYPE_S4, 7, 160},   {QTYPE_Z4_64, 7, 160},  {QTYPE_IQ4_XS, 7, 256},
    {QTYPE_MXFP4, 7, 160}, {QTYPE_Q2_K, 7, 256},  {QTYPE_Q4_K, 9, 256},
    {QTYPE_Q5_K, 9, 256},  {QTYPE_Q6_K, 9, 256},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static bool has_integers(const shape_t *shape)
{
    return shape->type != QTYPE_BF16 && shape->type != QTYPE_F16 && shape->type != QTYPE_F32 &&
           shape->type != QTYPE_F8S;
}

/* What only levels with tile registers have, where rows are many. The last of all, so that the
 * answers before it have the same places for every level. */
static void check_tiles(check_t *check)
{
    for (uint32_t i = 0; check->bad == NULL && i < N_SHAPES; i++) {
        shape_t many = {shapes[i].type, CHECK_TILE_ROWS, shapes[i].k};
        for (int one_leaf = 0; has_integers(&shapes[i]) && one_leaf < 2; one_leaf++)
            check_matmul(check, &many, KMODE_NATIVE, one_leaf == 1);
    }
}

static void check_all(check_t *check, bool tiles)
{
    /* A pool of one starts no thread. */
    CHECK(pool_open(1, NULL, &check->device.pool) == STATUS_OK);
    /* The vectors hold subnormals, so they are made in the default mode whoever calls. */
    uint32_t before = _mm_getcsr();
    _mm_setcsr(FPMODE_DEFAULT);
    check_rows(check);
    _mm_setcsr(FPMODE_DEFAULT);
    for (uint32_t i = 0; check->bad == NULL && i < N_SHAPES; i++)
        check_matmul(check, &shapes[i], KMODE_NATIVE, false);
    /* Values apart, which integer inputs of one leaf have. */
    for (uint32_t i = 0; check->bad == NULL && i < N_SHAPES; i++) {
        const shape_t few = {shapes[i].type, shapes[i].n_rows > 8 ? shapes[i].n_rows : 2,
                             shapes[i].k == 256 ? 256 : 160};
        if (has_integers(&shapes[i]))
            check_matmul(check, &few, KMODE_NATIVE, true);
    }
    if (check->bad == NULL)
        check_matmul(check, &(shape_t){QTYPE_Q4_1, 7, 352}, KMODE_F32, false);
    if (check->bad == NULL)
        check_attention(check, KMODE_NATIVE);
    if (check->bad == NULL)
        check_attention(check, KMODE_F32);
    if (check->bad == NULL && tiles)
        check_tiles(check);
    fpmode_leave(before);
    unmap_pages(check->device.panels, check->device.panel_bytes);
    pool_close(check->device.pool);
}

uint32_t selfcheck_answers(const klevel_t *level, uint64_t out[SELFCHECK_ANSWERS_MAX])
{
    check_t check = {.level = level, .state = 1, .device = {.level = level}, .answers_out = out};
    check_all(&check, true);
    return check.n_answers;
}

/* The build for measuring adds in another order, of which nothing is recorded. */
static const char *check_against_ref(const klevel_t *level)
{
    uint64_t answers[SELFCHECK_ANSWERS_MAX] = {0}, wanted[SELFCHECK_ANSWERS_MAX] = {0};
    (void)selfcheck_answers(&level_ref, wanted);
    (void)selfcheck_answers(level, answers);
    return memcmp(answers, wanted, sizeof answers) == 0 ? NULL : "a kernel";
}

const char *selfcheck(const klevel_t *level)
{
    if (level == &level_ref)
        return NULL; /* the definition */
    if (NUMERICS_ONE_LEAF)
        return check_against_ref(level);
    check_t check = {.level = level, .state = 1, .device = {.level = level}};
    check_all(&check, level->tile_rows > 0);
    return check.bad;
}
