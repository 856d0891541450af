/* What an agent sends to a rank process that does not read: nothing is waited for and nothing is
 * lost. The rank is this program itself, which starts to read when it is told to. */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/rank_process.h"
#include "worker/step_page.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

#define N_EPOCHS 500u

static const char session[1][CONTROL_SESSION_BYTES] = {"0123456789abcdef0123456789abcdef"};

/* What a step page may hold when its writer dies. */
static void write_page(const control_message_t *start)
{
    step_page_t *page;
    if (start->fd < 0 || step_page_map(start->fd, &page) != STATUS_OK)
        _exit(11);
    step_page_write(page, 1, session);
}

/* The life of the rank: exit code 0 when it was told all that it must know. */
static int read_everything(void)
{
    static control_message_t kept;
    control_message_t *message = &kept;
    uint32_t n_epochs = 0;
    uint64_t last = 0;
    bool got, drained = false, stopped = false;
    char byte;
    if (read(atoi(getenv("TEST_PIPE")), &byte, 1) != 1 || byte != 'g')
        return 10;
    while (!stopped) {
        struct pollfd fd = {.fd = CONTROL_FD, .events = POLLIN};
        poll(&fd, 1, -1);
        if (control_receive(CONTROL_FD, message, &got) != STATUS_OK)
            return 12;
        if (!got)
            continue;
        if (message->kind == CONTROL_START)
            write_page(message);
        if (message->kind == CONTROL_EPOCH) {
            n_epochs++;
            last = message->epoch.epoch;
            if (message->fd < 0 || write(message->fd, "x", 1) != 1)
                return 13;
            close(message->fd);
        }
        drained = drained || message->kind == CONTROL_DRAIN;
        stopped = message->kind == CONTROL_STOP;
    }
    return last == N_EPOCHS && n_epochs < N_EPOCHS && drained ? 0 : 14;
}

/* What a rank waits for before its first look at the channel. */
typedef struct {
    int read, write;
} gate_t;

static gate_t gate_new(void)
{
    int ends[2];
    char number[16];
    assert_int_equal(pipe(ends), 0);
    /* Away from the number that the control channel gets in the rank. */
    gate_t gate = {fcntl(ends[0], F_DUPFD, CONTROL_FD + 10), ends[1]};
    close(ends[0]);
    snprintf(number, sizeof number, "%d", gate.read);
    setenv("TEST_PIPE", number, 1);
    return gate;
}

static void gate_open(gate_t gate, const char *word)
{
    assert_int_equal(write(gate.write, word, 1), 1);
    close(gate.read);
    close(gate.write);
}

static void test_a_rank_that_does_not_read_is_not_waited_for_and_misses_no_word(void **state)
{
    (void)state;
    int memory[2];
    gate_t gate = gate_new();
    assert_int_equal(pipe(memory), 0);
    rank_start_t start = {.n_ranks = 1, .tp = 1, .stages = 1, .serve = 1};
    rank_process_t *rank;
    assert_int_equal(rank_process_spawn(&start, &rank), STATUS_OK);
    rank_epoch_t *epoch = MEM_NEW(rank_epoch_t);
    epoch->n_peers = FABRIC_RANKS_MAX;
    epoch->formation_ms = 60000;
    uint64_t begin = clock_ms();
    for (epoch->epoch = 1; epoch->epoch <= N_EPOCHS; epoch->epoch++)
        assert_int_equal(rank_process_send_epoch(rank, epoch, memory[1]), STATUS_OK);
    assert_int_equal(rank_process_send_drain(rank), STATUS_OK);
    assert_int_equal(rank_process_send_stop(rank), STATUS_OK);
    /* Even on a busy machine far below what waiting for a single message would take. */
    assert_true(clock_ms() - begin < 10000);
    assert_true(rank_process_has_unsent(rank));
    gate_open(gate, "g");
    while (rank_process_has_unsent(rank)) {
        struct pollfd fd = {.fd = rank_process_socket(rank), .events = POLLOUT};
        assert_int_equal(poll(&fd, 1, 20000), 1);
        assert_int_equal(rank_process_flush(rank), STATUS_OK);
    }
    rank_death_t death;
    assert_true(rank_process_reap(rank, 20000, &death));
    assert_int_equal(death.signal, 0);
    assert_int_equal(death.exit_code, 0);
    /* What it wrote into its page before it died. */
    static char flying[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
    assert_int_equal(rank_process_flying(rank, flying), 1);
    assert_string_equal(flying[0], session[0]);
    rank_process_release(rank);
    free(epoch);
    close(memory[0]);
    close(memory[1]);
}

static void test_a_rank_that_is_gone_is_said_to_be(void **state)
{
    (void)state;
    gate_t gate = gate_new();
    rank_start_t start = {.n_ranks = 2, .tp = 2, .stages = 1, .rank = 1, .slice = 1, .serve = 1};
    rank_process_t *rank;
    rank_death_t death;
    assert_int_equal(rank_process_spawn(&start, &rank), STATUS_OK);
    gate_open(gate, "x");
    assert_true(rank_process_reap(rank, 20000, &death));
    assert_int_equal(death.exit_code, 10);
    assert_int_equal(rank_process_send_stop(rank), STATUS_PEER_LOST);
    static char flying[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
    assert_int_equal(rank_process_flying(rank, flying), 0); /* no leader, no page */
    rank_process_release(rank);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "rank") == 0)
        return read_everything();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_rank_that_does_not_read_is_not_waited_for_and_misses_no_word),
        cmocka_unit_test(test_a_rank_that_is_gone_is_said_to_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
