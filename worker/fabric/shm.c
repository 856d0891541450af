/* Making and mapping an epoch's shared memory. It is a memfd, so that nothing of it stays behind
 * when its processes die, and sealed, so that no rank can shrink it under the others (they would
 * die of SIGBUS). */
#include "worker/fabric/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"

#define PAGE ((size_t)4096)
#define SLOT_BYTES (FABRIC_EXCHANGE_BYTES_MAX + PAGE)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

size_t fabric_lane_bytes(fabric_lane_t lane)
{
    switch (lane) {
    case FABRIC_PLAN:
        return FABRIC_PLAN_BYTES;
    case FABRIC_ACTIVATIONS:
    case FABRIC_PARTIALS:
        return FABRIC_ACTIVATIONS_BYTES;
    case FABRIC_LOGITS:
        return FABRIC_LOGITS_BYTES;
    case FABRIC_RESULT:
        return FABRIC_RESULT_BYTES;
    case FABRIC_CONTROL:
    case FABRIC_LANES:
        break;
    }
    return FABRIC_CONTROL_BYTES;
}

static size_t round_to_page(size_t n)
{
    return (n + PAGE - 1) & ~(PAGE - 1);
}

static size_t ring_bytes(fabric_lane_t lane)
{
    return lane == FABRIC_PARTIALS ? 0 : PAGE + fabric_lane_bytes(lane);
}

static size_t pair_bytes(void)
{
    size_t bytes = 0;
    for (fabric_lane_t lane = 0; lane < FABRIC_LANES; lane++)
        bytes += ring_bytes(lane);
    return bytes;
}

static size_t rings_at(void)
{
    return round_to_page(sizeof(shm_head_t)) + round_to_page(sizeof(board_t));
}

static size_t slots_at(uint32_t n_local)
{
    return rings_at() + (size_t)n_local * n_local * pair_bytes();
}

/* At most 64 ranks: below 64 GiB of addresses, far from overflow. */
static size_t total_bytes(uint32_t n_local)
{
    return slots_at(n_local) + (size_t)n_local * 2 * SLOT_BYTES;
}

static const shm_head_t *head_of(const fabric_shm_t *shm)
{
    return (const shm_head_t *)(const void *)shm->map;
}

static status_t map_whole(int fd, size_t bytes, fabric_shm_t *out)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return fail(STATUS_NO_MEMORY, "cannot map %zu bytes of shared memory: %m", bytes);
    /* A core file of a crashed rank needs none of it and would be as large as the mapping. */
    madvise(map, bytes, MADV_DONTDUMP);
    out->map = map;
    out->bytes = bytes;
    out->board = (board_t *)(void *)(out->map + round_to_page(sizeof(shm_head_t)));
    return STATUS_OK;
}

status_t fabric_shm_create(uint64_t epoch, const uint32_t *local, uint32_t n_local,
                           fabric_shm_t **own_out)
{
    if (n_local == 0 || n_local > FABRIC_RANKS_MAX)
        return fail(STATUS_INVALID, "shared memory for %u ranks: 1 to %d would be right", n_local,
                    FABRIC_RANKS_MAX);
    for (uint32_t i = 0; i < n_local; i++) {
        if (local[i] >= FABRIC_RANKS_MAX || (i > 0 && local[i] <= local[i - 1]))
            return fail(STATUS_INVALID, "local ranks must ascend and be below %d",
                        FABRIC_RANKS_MAX);
    }
    int fd = memfd_create("shoal-fabric", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return fail(STATUS_NO_MEMORY, "cannot make shared memory: %m");
    size_t bytes = total_bytes(n_local);
    fabric_shm_t made = {.fd = fd};
    status_t status = STATUS_OK;
    if (ftruncate(fd, (off_t)bytes) != 0 || fcntl(fd, F_ADD_SEALS, SEALS) != 0)
        status = fail(STATUS_NO_MEMORY, "cannot size shared memory to %zu bytes: %m", bytes);
    else
        status = map_whole(fd, bytes, &made);
    if (status != STATUS_OK) {
        close(fd);
        return status;
    }
    shm_head_t *head = (shm_head_t *)(void *)made.map;
    *head = (shm_head_t){.magic = SHM_MAGIC, .epoch = epoch, .bytes = bytes, .n_local = n_local};
    memcpy(head->local, local, n_local * sizeof *local);
    fabric_shm_t *shm = MEM_NEW(fabric_shm_t);
    *shm = made;
    *own_out = shm;
    return STATUS_OK;
}

status_t shm_map(int fd, uint64_t epoch, fabric_shm_t *out)
{
    struct stat about;
    if (fstat(fd, &about) != 0)
        return fail(STATUS_INVALID, "shared memory: descriptor %d is not usable: %m", fd);
    if (about.st_size < (off_t)rings_at() || (fcntl(fd, F_GET_SEALS) & SEALS) != SEALS)
        return fail(STATUS_INVALID, "shared memory: descriptor %d is not a sealed fabric file", fd);
    fabric_shm_t shm = {.fd = -1};
    TRY(map_whole(fd, (size_t)about.st_size, &shm));
    const shm_head_t *head = head_of(&shm);
    if (head->magic != SHM_MAGIC || head->n_local == 0 || head->n_local > FABRIC_RANKS_MAX ||
        head->bytes != shm.bytes || total_bytes(head->n_local) != shm.bytes) {
        shm_unmap(&shm);
        return fail(STATUS_INVALID, "shared memory: the head does not fit the file");
    }
    if (head->epoch != epoch) {
        uint64_t other = head->epoch;
        shm_unmap(&shm);
        return fail(STATUS_STALE, "shared memory is of epoch %llu, not %llu",
                    (unsigned long long)other, (unsigned long long)epoch);
    }
    *out = shm;
    return STATUS_OK;
}

void shm_unmap(fabric_shm_t *shm)
{
    if (shm->map)
        munmap(shm->map, shm->bytes);
    shm->map = NULL;
}

uint32_t shm_local_index(const fabric_shm_t *shm, uint32_t rank)
{
    const shm_head_t *head = head_of(shm);
    for (uint32_t i = 0; i < head->n_local && i < FABRIC_RANKS_MAX; i++) {
        if (head->local[i] == rank)
            return i;
    }
    return UINT32_MAX;
}

ring_t shm_ring(const fabric_shm_t *shm, uint32_t from, uint32_t to, fabric_lane_t lane)
{
    size_t at = rings_at() + ((size_t)from * head_of(shm)->n_local + to) * pair_bytes();
    for (fabric_lane_t before = 0; before < lane; before++)
        at += ring_bytes(before);
    return (ring_t){
        .positions = (ring_positions_t *)(void *)(shm->map + at),
        .data = shm->map + at + PAGE,
        .capacity = fabric_lane_bytes(lane),
    };
}

shm_slot_t *shm_slot(const fabric_shm_t *shm, uint32_t index, uint32_t which)
{
    size_t at = slots_at(head_of(shm)->n_local) + ((size_t)index * 2 + which) * SLOT_BYTES;
    return (shm_slot_t *)(void *)(shm->map + at);
}

uint8_t *shm_slot_bytes(shm_slot_t *slot)
{
    return (uint8_t *)slot + sizeof *slot;
}

int fabric_shm_fd(const fabric_shm_t *shm)
{
    return shm->fd;
}

void fabric_shm_abort(fabric_shm_t *shm, const char *reason)
{
    board_abort(shm->board, reason);
}

void fabric_shm_rank_died(fabric_shm_t *shm, uint32_t rank, const char *reason)
{
    if (rank < FABRIC_RANKS_MAX)
        board_rank_died(shm->board, rank, reason, false);
}

void fabric_shm_release(fabric_shm_t *take_shm)
{
    if (!take_shm)
        return;
    shm_unmap(take_shm);
    if (take_shm->fd >= 0)
        close(take_shm->fd);
    free(take_shm);
}
