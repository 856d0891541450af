/* See support.h. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "emulated.h"
#include "kernels/cpu/numbers.h"

uint32_t random_u32(random_t *random)
{
    /* splitmix64 */
    uint64_t z = (random->state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

uint32_t random_below(random_t *random, uint32_t n)
{
    return (uint32_t)(((uint64_t)random_u32(random) * n) >> 32);
}

float random_normal(random_t *random)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (float)random_u32(random) * 0x1p-32f;
    return sum - 6.0f;
}

static uint16_t make_half(float x)
{
    /* Good enough for scales: rounds towards zero. */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 23 & 0xff) - 112;
    uint32_t sign = bits >> 16 & 0x8000u;
    if (exponent <= 0)
        return (uint16_t)sign;
    return (uint16_t)(sign | (uint32_t)exponent << 10 | (bits >> 13 & 0x3ffu));
}

static void corner_block(random_t *random, uint8_t *block, size_t header, size_t bytes)
{
    static const uint8_t fills[] = {0x00, 0xff, 0x80, 0x7f, 0x0f, 0xf0};
    memset(block + header, fills[random_below(random, sizeof fills)], bytes - header);
    static const uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xbc00, 0x0400};
    for (size_t i = 0; i < header; i += 2)
        memcpy(block + i, &halves[random_below(random, 7)], 2);
}

static void make_block(random_t *random, qtype_t type, uint8_t *block)
{
    size_t bytes = qtype_info(type)->block_bytes;
    size_t header = type == QTYPE_Q4_1 ? 4 : 2;
    for (size_t i = header; i < bytes; i++)
        block[i] = (uint8_t)random_u32(random);
    uint16_t d = make_half(0.01f * random_normal(random));
    memcpy(block, &d, 2);
    if (type == QTYPE_Q4_1) {
        uint16_t m = make_half(0.1f * random_normal(random));
        memcpy(block + 2, &m, 2);
    }
    if (random_below(random, 8) == 0)
        corner_block(random, block, header, bytes);
}

/* Where a block of the other types has its scales: halves at up to two places, a float, or an
 * exponent of two. */
typedef struct {
    qtype_t type;
    enum { HALVES, FLOAT, EXPONENT } kind;
    int at[2];
    float factor; /* brings values to the size of 0.05 */
} scales_t;

static const scales_t SCALES[] = {
    {QTYPE_Q5_0, HALVES, {0, -1}, 0.005f},     {QTYPE_Q5_1, HALVES, {0, 2}, 0.005f},
    {QTYPE_Q2_K, HALVES, {80, 82}, 0.005f},    {QTYPE_Q3_K, HALVES, {108, -1}, 0.001f},
    {QTYPE_Q4_K, HALVES, {0, 2}, 0.0002f},     {QTYPE_Q5_K, HALVES, {0, 2}, 0.0001f},
    {QTYPE_Q6_K, HALVES, {208, -1}, 0.00005f}, {QTYPE_IQ4_NL, HALVES, {0, -1}, 0.001f},
    {QTYPE_IQ4_XS, HALVES, {0, -1}, 0.0001f},  {QTYPE_MXFP4, EXPONENT, {0, -1}, 0},
    {QTYPE_I8S, FLOAT, {0, -1}, 0.001f},       {QTYPE_F8S, FLOAT, {0, -1}, 0.001f},
};

/* Every byte random but the scales, which now and then are 0 or subnormal. */
static void make_other_block(random_t *random, const scales_t *scales, uint8_t *block)
{
    size_t bytes = qtype_info(scales->type)->block_bytes;
    for (size_t i = 0; i < bytes; i++) {
        block[i] = (uint8_t)random_u32(random);
        if (scales->type == QTYPE_F8S && (block[i] & 0x7f) == 0x7f)
            block[i] = 0x7e;
    }
    if (qtype_is_z4(scales->type))
        block[2] = (uint8_t)(scales->type < QTYPE_S4 ? block[2] % (QTYPE_Z4_ZERO_MAX + 1) : 8);
    bool corner = random_below(random, 8) == 0;
    float d = scales->factor * random_normal(random);
    if (scales->kind == EXPONENT)
        block[0] = (uint8_t)(corner ? random_below(random, 3) : 115 + random_below(random, 10));
    if (scales->kind == FLOAT)
        memcpy(block, &d, sizeof d);
    for (int i = 0; scales->kind == HALVES && i < 2 && scales->at[i] >= 0; i++) {
        static const uint16_t corners[] = {0x0000, 0x8000, 0x0001, 0x83ff};
        float scale = i == 0 ? d : scales->factor * random_normal(random);
        uint32_t bits;
        memcpy(&bits, &scale, sizeof bits);
        bool bf16 = qtype_is_z4(scales->type) && qtype_z4_is_bf16(scales->type);
        uint16_t half = bf16 ? (uint16_t)(bits >> 16) : make_half(scale);
        half = corner ? corners[random_below(random, 4)] : half;
        memcpy(block + scales->at[i], &half, sizeof half);
    }
}

static uint8_t *make_other_rows(random_t *random, const scales_t *scales, size_t bytes)
{
    uint8_t *rows = mem_new(bytes, 1);
    for (size_t at = 0; at < bytes; at += qtype_info(scales->type)->block_bytes)
        make_other_block(random, scales, rows + at);
    return rows;
}

uint8_t *make_rows(random_t *random, qtype_t type, uint32_t n_rows, uint32_t k, size_t *bytes_out)
{
    uint64_t row_bytes;
    assert_true(qtype_row_bytes(type, k, &row_bytes));
    *bytes_out = n_rows * row_bytes;
    if (qtype_is_z4(type))
        return make_other_rows(random, &(scales_t){type, HALVES, {0, -1}, 0.005f}, *bytes_out);
    for (size_t i = 0; i < sizeof SCALES / sizeof SCALES[0]; i++)
        if (SCALES[i].type == type)
            return make_other_rows(random, &SCALES[i], *bytes_out);
    uint8_t *rows = mem_new(n_rows, row_bytes);
    for (size_t i = 0; i < (size_t)n_rows * k; i++) {
        float x = random_normal(random) * 0.05f;
        if (random_below(random, 64) == 0)
            x = random_below(random, 2) ? 0.0f : -0x1p-140f;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        uint16_t half = type == QTYPE_BF16 ? (uint16_t)(bits >> 16) : make_half(x);
        if (type == QTYPE_F32)
            memcpy(rows + i * 4, &x, 4);
        else if (type == QTYPE_F16 || type == QTYPE_BF16)
            memcpy(rows + i * 2, &half, 2);
        else if (i % 32 == 0)
            make_block(random, type, rows + i / 32 * qtype_info(type)->block_bytes);
    }
    return rows;
}

float *make_input(random_t *random, uint32_t rows, uint32_t k)
{
    float *x = MEM_NEW_ARRAY(float, (size_t)rows *k);
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t corner = random_below(random, 8);
        for (uint32_t i = 0; i < k; i++) {
            float value = random_normal(random);
            if (corner == 0 && i < k / 2)
                value = i % 2 ? 0.0f : -0.0f;
            if (corner == 1)
                value = i == k / 3 ? -1e20f : value * 1e-3f;
            if (corner == 2)
                value = value * 0x1p-110f;
            if (corner == 3) /* ties: amax 127, so that x * id is k + 1/2 */
                value = i == 0 ? 127.0f : (float)(int)(value * 20) + 0.5f;
            if (corner == 4 && i % 3 == 0)
                value = value * 0x1p-140f;
            x[(size_t)row * k + i] = value;
        }
    }
    return x;
}

void assert_ok_at(status_t status, const char *expression, const char *file, int line)
{
    if (status != STATUS_OK)
        print_error("%s: %s: %s\n", expression, status_name(status), status_text());
    _assert_int_equal(status, STATUS_OK, file, line);
}

uint32_t test_levels(const char *names_out[TEST_LEVELS_MAX])
{
    uint32_t n = kernels_cpu_levels(names_out);
    if (strcmp(names_out[n - 1], "avx512") == 0)
        names_out[n++] = EMULATED_AMX;
    return n;
}

fixture_t open_fixture(const char *isa, uint32_t threads, kmode_t mode, kqueue_kind_t kind)
{
    fixture_t fixture = {.ops = kernels_cpu()};
    bool emulated = isa != NULL && strcmp(isa, EMULATED_AMX) == 0;
    kdevice_options_t options = {
        .isa = emulated ? "avx512" : isa, .threads = threads, .mode = mode};
    assert_ok(fixture.ops->device_open(&options, &fixture.device));
    if (emulated)
        fixture.device->level = level_emulated();
    assert_ok(fixture.ops->queue_open(fixture.device, kind, &fixture.queue));
    return fixture;
}

void close_fixture(fixture_t *fixture)
{
    fixture->ops->queue_close(fixture->queue);
    fixture->ops->device_close(fixture->device);
}

void wait_all(const fixture_t *fixture)
{
    kevent_t event;
    assert_ok(fixture->ops->event_record(fixture->queue, &event));
    assert_ok(fixture->ops->event_wait(fixture->queue, event));
}

kref_t new_ref(const fixture_t *fixture, size_t bytes)
{
    kref_t ref = {0};
    assert_ok(fixture->ops->buffer_new(fixture->device, bytes, &ref.buffer));
    return ref;
}

kref_t ref_of(const fixture_t *fixture, const void *data, size_t bytes)
{
    kref_t ref = new_ref(fixture, bytes);
    assert_ok(fixture->ops->copy_in(fixture->queue, ref, data, bytes));
    return ref;
}

void release_ref(const fixture_t *fixture, kref_t ref)
{
    fixture->ops->buffer_release(ref.buffer);
}

void assert_same_bits(const float *found, const float *wanted, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&found[i], &wanted[i], sizeof found[i]) != 0)
            fail_test("%s: element %zu is %a, ref has %a", what, i, (double)found[i],
                      (double)wanted[i]);
    }
}

step_t open_step(const char *isa, uint32_t threads, kmode_t mode)
{
    step_t s = {.f = open_fixture(isa, threads, mode, KQUEUE_NOW)};
    assert_ok(s.f.ops->batch_new(s.f.device, 16384, STEP_BLOCKS, &s.batch));
    for (uint32_t i = 0; i < STEP_BLOCKS; i++)
        s.blocks[i] = (i * 37 + 5) % STEP_BLOCKS;
    return s;
}

void close_step(step_t *s)
{
    s->f.ops->batch_release(s->batch);
    close_fixture(&s->f);
}

void set_rows(step_t *s, uint32_t first, uint32_t end)
{
    kbatch_row_t *rows = MEM_NEW_ARRAY(kbatch_row_t, end - first);
    for (uint32_t i = first; i < end; i++)
        rows[i - first] = (kbatch_row_t){.position = i};
    kbatch_table_t table = {s->blocks, (end + 15) / 16};
    assert_ok(s->f.ops->batch_set(s->f.queue, s->batch, rows, end - first, &table, 1));
    free(rows);
}

float *normals(random_t *random, size_t n, float factor)
{
    float *x = MEM_NEW_ARRAY(float, n);
    for (size_t i = 0; i < n; i++)
        x[i] = random_normal(random) * factor;
    return x;
}

double stored_as(float x, kmode_t mode)
{
    return mode == KMODE_F32 ? (double)x : (double)bf16_value(bf16_round_finite(x));
}
