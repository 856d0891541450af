/* A level that fails its self-check, which is this file's own, does not compute, is an error where it
 * is asked for by name, and is checked once, however many ask at once. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "common/base/clock.h"
#include "kernels/cpu/selfcheck.h"
#include "support.h"

static const char *refused; /* the level whose kernels differ */
static _Atomic uint32_t n_checks;

const char *selfcheck(const klevel_t *level)
{
    const struct timespec nap = {.tv_nsec = 20 * 1000 * 1000};
    nanosleep(&nap, NULL); /* time enough for the others to come */
    atomic_fetch_add(&n_checks, 1);
    return strcmp(level->name, refused) == 0 ? "matmul" : NULL;
}

static void *open_one(void *isa_out)
{
    kdevice_t *device;
    const kdevice_options_t options = {.threads = 1};
    if (kernels_cpu()->device_open(&options, &device) != STATUS_OK)
        return NULL;
    kdevice_info_t info = kernels_cpu()->device_info(device);
    *(bool *)isa_out = strcmp(info.isa, refused) != 0 &&
                       strstr(info.refused, ": matmul gives other bits than ref") != NULL;
    kernels_cpu()->device_close(device);
    return NULL;
}

static void test_a_level_that_fails_its_self_check_does_not_compute(void **state)
{
    (void)state;
    enum { N = 4 };
    const char *levels[KLEVELS_MAX];
    uint32_t n = kernels_cpu_levels(levels);
    if (n < 2)
        skip();
    refused = levels[n - 1];
    pthread_t threads[N];
    bool right[N] = {false};
    kernels_cpu_begin();
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_one, &right[i]), 0);
    for (uint32_t i = 0; i < N; i++)
        pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < N; i++)
        assert_true(right[i]);
    assert_int_equal(atomic_load(&n_checks), 2); /* that one and the next */
    kdevice_t *device;
    const kdevice_options_t forced = {.isa = refused, .threads = 1};
    assert_int_equal(kernels_cpu()->device_open(&forced, &device), STATUS_UNSUPPORTED);
    assert_non_null(strstr(status_text(), "matmul gives other bits than ref"));
    assert_int_equal(atomic_load(&n_checks), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_level_that_fails_its_self_check_does_not_compute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
