/* What the kernels' tests share: seeded numbers, rows of every weight type with corner values, and
 * a device with a queue and buffers in one call. */
#ifndef SHOAL_TESTS_KERNELS_SUPPORT_H
#define SHOAL_TESTS_KERNELS_SUPPORT_H

#include "common/base/qtype.h"
#include "kernels/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first; its macro `fail` would hide status.h's function. */
#include <cmocka.h>
#undef fail

#define fail_test(...)                                                                             \
    do {                                                                                           \
        print_error(__VA_ARGS__);                                                                  \
        print_error("\n");                                                                         \
        _fail(__FILE__, __LINE__);                                                                 \
    } while (0)

typedef struct {
    uint64_t state;
} random_t;

uint32_t random_u32(random_t *random);
uint32_t random_below(random_t *random, uint32_t n);
/* Roughly normal, mean 0, deviation 1. */
float random_normal(random_t *random);

/* Raw rows of a type, freed with free(). Every eighth block holds corner values: scale 0, all
 * quants 0, 15 or -128, negative and subnormal halves. */
uint8_t *make_rows(random_t *random, qtype_t type, uint32_t n_rows, uint32_t k, size_t *bytes_out);
/* Activations with corners: zero groups, one large value, exact ties, subnormals, tiny groups. */
float *make_input(random_t *random, uint32_t rows, uint32_t k);

typedef struct {
    const kernel_ops_t *ops;
    kdevice_t *device;
    kqueue_t *queue;
} fixture_t;

/* kernels_cpu_levels and behind them, where this machine can run the rest of it, "amx emulated":
 * the kernels of amx over tile registers in plain C. open_fixture knows its name. */
enum { TEST_LEVELS_MAX = KLEVELS_MAX + 1 };
uint32_t test_levels(const char *names_out[TEST_LEVELS_MAX]);

fixture_t open_fixture(const char *isa, uint32_t threads, kmode_t mode, kqueue_kind_t kind);
void close_fixture(fixture_t *fixture);
void wait_all(const fixture_t *fixture);

kref_t new_ref(const fixture_t *fixture, size_t bytes);
kref_t ref_of(const fixture_t *fixture, const void *data, size_t bytes);
void release_ref(const fixture_t *fixture, kref_t ref);
/* A device with a batch, whose one sequence has a table that jumps about. */
enum { STEP_BLOCKS = 560 };
typedef struct {
    fixture_t f;
    kbatch_t *batch;
    uint32_t blocks[STEP_BLOCKS];
} step_t;
step_t open_step(const char *isa, uint32_t threads, kmode_t mode);
void close_step(step_t *step);
/* Positions [first, end) of the sequence. */
void set_rows(step_t *step, uint32_t first, uint32_t end);

/* n normal numbers times factor, freed with free(). */
float *normals(random_t *random, size_t n, float factor);
/* What the cache of a mode makes of x. */
double stored_as(float x, kmode_t mode);

/* The words of the failure on standard error, then a failed test. */
#define assert_ok(expression) assert_ok_at((expression), #expression, __FILE__, __LINE__)
void assert_ok_at(status_t status, const char *expression, const char *file, int line);

/* Floats as bits: fails at the first difference, naming it. */
void assert_same_bits(const float *found, const float *wanted, size_t n, const char *what);

#endif
