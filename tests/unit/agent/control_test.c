/* The control channel: every message comes out as it went in, and nothing else is taken. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/control.h"

/* cmocka has a macro of that name; ours is not used in tests. */
#undef fail
#include <cmocka.h>

static control_message_t *example(control_kind_t kind)
{
    control_message_t *message = MEM_NEW(control_message_t);
    message->kind = kind;
    message->fd = -1;
    switch (kind) {
    case CONTROL_START:
        snprintf(message->start.replica, sizeof message->start.replica, "smol/0");
        message->start.n_ranks = 6;
        message->start.tp = 3;
        message->start.stages = 2;
        message->start.rank = 4;
        message->start.stage = 1;
        message->start.slice = 1;
        break;
    case CONTROL_EPOCH:
        message->epoch.epoch = 77;
        message->epoch.n_peers = 3;
        message->epoch.peers[2].address_bytes = FABRIC_ADDRESS_BYTES_MAX;
        memset(message->epoch.peers[2].address, 0xab, FABRIC_ADDRESS_BYTES_MAX);
        break;
    case CONTROL_HELLO:
        message->hello.pid = 4711;
        message->hello.address_bytes = 9;
        break;
    case CONTROL_BEAT:
        message->beat = (control_beat_t){123, 99, 4, 1};
        break;
    case CONTROL_PREPARED:
        message->prepared = (control_prepared_t){77, 1000};
        break;
    case CONTROL_ACTIVE:
        snprintf(message->active.leader, sizeof message->active.leader, "10.0.0.1:7000");
        break;
    case CONTROL_FAILED:
        message->failed.n_sessions = 2;
        snprintf(message->failed.sessions[1], CONTROL_SESSION_BYTES, "%032x", 7);
        snprintf(message->failed.text, sizeof message->failed.text, "rank 3: lost");
        break;
    default:
        break;
    }
    return message;
}

static const control_kind_t kinds[] = {
    CONTROL_START, CONTROL_EPOCH,  CONTROL_DRAIN,    CONTROL_STOP,   CONTROL_HELLO,
    CONTROL_BEAT,  CONTROL_LOADED, CONTROL_PREPARED, CONTROL_ACTIVE, CONTROL_FAILED};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static void test_every_message_comes_out_as_it_went_in(void **state)
{
    (void)state;
    uint8_t *bytes = mem_new(1, CONTROL_MESSAGE_BYTES_MAX);
    control_message_t *out = MEM_NEW(control_message_t);
    for (int i = 0; i < N_KINDS; i++) {
        control_message_t *message = example(kinds[i]);
        size_t n = control_encode(message, bytes);
        assert_int_equal(control_decode(bytes, n, out), STATUS_OK);
        assert_memory_equal(out, message, sizeof *out);
        free(message);
    }
    free(out);
    free(bytes);
}

static void test_every_truncation_and_every_longer_packet_is_refused(void **state)
{
    (void)state;
    uint8_t *bytes = mem_new(1, CONTROL_MESSAGE_BYTES_MAX);
    control_message_t *out = MEM_NEW(control_message_t);
    for (int i = 0; i < N_KINDS; i++) {
        control_message_t *message = example(kinds[i]);
        size_t n = control_encode(message, bytes);
        for (size_t cut = 0; cut < n; cut += cut < 400 ? 1 : 97) {
            uint8_t *copy = mem_new(1, cut + 1); /* just as long, so that reading past it is seen */
            memcpy(copy, bytes, cut);
            assert_int_equal(control_decode(copy, cut, out), STATUS_INVALID);
            free(copy);
        }
        assert_int_equal(control_decode(bytes, n + 1, out), STATUS_INVALID);
        free(message);
    }
    free(out);
    free(bytes);
}

/* Changes a message after it was encoded and expects it to be refused. */
static void refuse(control_message_t *take_message)
{
    uint8_t *bytes = mem_new(1, CONTROL_MESSAGE_BYTES_MAX);
    control_message_t *out = MEM_NEW(control_message_t);
    size_t n = control_encode(take_message, bytes);
    assert_int_equal(control_decode(bytes, n, out), STATUS_INVALID);
    free(out);
    free(bytes);
    free(take_message);
}

static void test_texts_without_an_end_and_counts_beyond_their_arrays_are_refused(void **state)
{
    (void)state;
    control_message_t *message = example(CONTROL_START);
    memset(message->start.model_path, 'x', sizeof message->start.model_path);
    refuse(message);
    message = example(CONTROL_START);
    message->start.slice = 3;
    refuse(message);
    message = example(CONTROL_START);
    message->start.expert_groups = 4; /* of 3 slices */
    refuse(message);
    message = example(CONTROL_START);
    message->start.attention_slices = 4;
    refuse(message);
    message = example(CONTROL_START);
    message->start.attention_replicas = 4;
    refuse(message);
    message = example(CONTROL_START);
    message->start.n_ranks = 65;
    refuse(message);
    message = example(CONTROL_START);
    message->start.numa_node = 1024;
    refuse(message);
    message = example(CONTROL_EPOCH);
    message->epoch.peers[1].address_bytes = FABRIC_ADDRESS_BYTES_MAX + 1;
    refuse(message);
    message = example(CONTROL_HELLO);
    message->hello.address_bytes = FABRIC_ADDRESS_BYTES_MAX + 1;
    refuse(message);
    message = example(CONTROL_FAILED);
    memset(message->failed.sessions[1], 'x', CONTROL_SESSION_BYTES);
    refuse(message);

    /* A count that promises more than the packet holds. */
    uint8_t *bytes = mem_new(1, CONTROL_MESSAGE_BYTES_MAX);
    message = example(CONTROL_EPOCH);
    size_t n = control_encode(message, bytes);
    uint32_t count = 64;
    memcpy(bytes + 16 + offsetof(rank_epoch_t, n_peers), &count, sizeof count);
    assert_int_equal(control_decode(bytes, n, message), STATUS_INVALID);
    count = UINT32_MAX;
    memcpy(bytes + 16 + offsetof(rank_epoch_t, n_peers), &count, sizeof count);
    assert_int_equal(control_decode(bytes, n, message), STATUS_INVALID);
    free(message);
    free(bytes);
}

static void test_the_shared_memory_travels_with_its_epoch(void **state)
{
    (void)state;
    int pair[2];
    bool got;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    control_message_t *message = example(CONTROL_EPOCH), *out = MEM_NEW(control_message_t);
    message->fd = memfd_create("shared", MFD_CLOEXEC);
    assert_int_equal(write(message->fd, "words", 5), 5);
    assert_int_equal(control_send(pair[0], message), STATUS_OK);
    close(message->fd);
    assert_int_equal(control_receive(pair[1], out, &got), STATUS_OK);
    assert_true(got && out->fd >= 0);
    char words[5];
    assert_int_equal(pread(out->fd, words, 5, 0), 5);
    assert_memory_equal(words, "words", 5);
    close(out->fd);
    assert_int_equal(control_receive(pair[1], out, &got), STATUS_OK);
    assert_false(got);
    close(pair[0]);
    assert_int_equal(control_receive(pair[1], out, &got), STATUS_PEER_LOST);
    assert_int_equal(control_send(pair[1], message), STATUS_PEER_LOST);
    close(pair[1]);
    free(out);
    free(message);
}

/* Both ends of a channel whose buffers hold little. */
static void narrow_pair(int pair[2])
{
    const int bytes = 16 << 10;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
}

/* Fills the channel with beats; returns how many it holds. */
static uint64_t fill(int socket)
{
    control_message_t *message = example(CONTROL_BEAT);
    bool sent = true;
    uint64_t n = 0;
    for (; sent; n += sent ? 1 : 0) {
        message->beat.progress = n;
        assert_int_equal(control_try_send(socket, message, &sent), STATUS_OK);
    }
    free(message);
    return n;
}

static void test_a_full_channel_takes_no_beat_and_nobody_waits_for_it(void **state)
{
    (void)state;
    int pair[2];
    bool got;
    narrow_pair(pair);
    uint64_t begin = clock_ms(), n = fill(pair[0]);
    assert_true(n > 3 && clock_ms() - begin < 900);
    control_message_t *out = MEM_NEW(control_message_t);
    for (uint64_t i = 0; i < n; i++) {
        assert_int_equal(control_receive(pair[1], out, &got), STATUS_OK);
        assert_true(got && out->beat.progress == i);
    }
    assert_int_equal(control_receive(pair[1], out, &got), STATUS_OK);
    assert_false(got);
    close(pair[0]);
    close(pair[1]);
    free(out);
}

typedef struct {
    int socket;
    status_t status;
    _Atomic bool done;
} sending_t;

static void *send_active(void *argument)
{
    sending_t *sending = argument;
    control_message_t *message = example(CONTROL_ACTIVE);
    sending->status = control_send(sending->socket, message);
    atomic_store(&sending->done, true);
    free(message);
    return NULL;
}

static void test_a_word_that_counts_waits_for_a_reader_that_stands_still(void **state)
{
    (void)state;
    for (int dies = 0; dies < 2; dies++) {
        int pair[2];
        bool got;
        pthread_t thread;
        narrow_pair(pair);
        uint64_t n = fill(pair[0]);
        sending_t sending = {.socket = pair[0]};
        assert_int_equal(pthread_create(&thread, NULL, send_active, &sending), 0);
        usleep(1300000); /* longer than any patience of a single try */
        assert_false(atomic_load(&sending.done));
        control_message_t *out = MEM_NEW(control_message_t);
        for (uint64_t i = 0; !dies && i < n; i++)
            assert_int_equal(control_receive(pair[1], out, &got), STATUS_OK);
        if (dies)
            close(pair[1]);
        pthread_join(thread, NULL);
        assert_int_equal(sending.status, dies ? STATUS_PEER_LOST : STATUS_OK);
        if (!dies) {
            assert_int_equal(control_receive(pair[1], out, &got), STATUS_OK);
            assert_true(got && out->kind == CONTROL_ACTIVE);
            close(pair[1]);
        }
        close(pair[0]);
        free(out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_message_comes_out_as_it_went_in),
        cmocka_unit_test(test_every_truncation_and_every_longer_packet_is_refused),
        cmocka_unit_test(test_texts_without_an_end_and_counts_beyond_their_arrays_are_refused),
        cmocka_unit_test(test_the_shared_memory_travels_with_its_epoch),
        cmocka_unit_test(test_a_full_channel_takes_no_beat_and_nobody_waits_for_it),
        cmocka_unit_test(test_a_word_that_counts_waits_for_a_reader_that_stands_still),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
