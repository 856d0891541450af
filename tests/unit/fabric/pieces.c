/* See pieces.h. */
#include "pieces.h"

#include <unistd.h>

enum { ROUNDS = 60, MEMBERS_MAX = 4, UNITS = 50, PART_BYTES_MAX = 2 * MEMBERS_MAX * UNITS * 64 };

static uint8_t pattern(uint32_t member, uint32_t round, size_t i)
{
    return (uint8_t)(member * 31 + round * 5 + i * 7 + (i >> 8));
}

typedef struct {
    uint32_t n, n_a, me; /* of the group */
    uint32_t times[MEMBERS_MAX];
    size_t bytes[MEMBERS_MAX];
    size_t all, before; /* of bytes[]; those of members before this one */
} round_t;

static void describe(round_t *round, uint32_t number)
{
    round->all = round->before = 0;
    for (uint32_t i = 0; i < round->n; i++) {
        round->times[i] = (number + i) % 3;
        round->bytes[i] = number % 5 == i ? 0 : (number * 11 + i * 13) % UNITS * 64;
        round->before += i < round->me ? round->bytes[i] : 0;
        round->all += round->bytes[i];
    }
}

/* What the fabric is to have counted since `old`. */
static int check_counts(fabric_t *fabric, const round_t *round, const fabric_counts_t *old)
{
    fabric_counts_t now;
    size_t taken = 0, sent = 0;
    for (uint32_t i = 0; i < round->n; i++) {
        bool far = (i < round->n_a) != (round->me < round->n_a);
        taken += i != round->me ? round->times[i] * round->bytes[round->me] : 0;
        sent += far ? round->times[round->me] * round->bytes[i] : 0;
    }
    fabric_counts(fabric, &now);
    EXPECT(now.exchange_bytes - old->exchange_bytes == taken);
    EXPECT(now.bytes_sent - old->bytes_sent == sent);
    return 0;
}

int pieces_traffic(fabric_t *fabric, uint32_t n, uint32_t n_a)
{
    static uint8_t own[PART_BYTES_MAX];
    round_t round = {.n = n, .n_a = n_a, .me = fabric_rank(fabric) % n};
    for (uint32_t number = 0; number < ROUNDS; number++) {
        const void *pieces[MEMBERS_MAX];
        const size_t eight[MEMBERS_MAX] = {8, 8, 8, 8};
        fabric_counts_t old;
        describe(&round, number);
        uint8_t *mine = number & 2 ? fabric_exchange_buffer(fabric) : own;
        for (size_t k = 0; k < round.times[round.me] * round.all; k++)
            mine[k] = pattern(round.me, number, k);
        fabric_counts(fabric, &old);
        EXPECT(fabric_exchange_pieces(fabric, NULL, mine, round.bytes, round.times, pieces) ==
               STATUS_OK);
        EXPECT(check_counts(fabric, &round, &old) == 0);
        for (uint32_t i = 0; i < n; i++) {
            const uint8_t *piece = pieces[i];
            EXPECT(((uintptr_t)piece & 63) == 0);
            for (size_t k = 0; k < round.times[i] * round.bytes[round.me]; k++)
                EXPECT(piece[k] == pattern(i, number, round.times[i] * round.before + k));
        }
        if (number % 7 == 0)
            EXPECT(fabric_exchange(fabric, NULL, own, eight, pieces) == STATUS_OK);
    }
    return 0;
}
