/* The codec and the socket of the control channel: see control.h. The two ends are the same
 * program, so bodies travel as they lie in memory, but for the lists, which are cut to what is in
 * use; what arrives is checked all the same, because a crashing rank may write anything before it
 * dies. */
#include "worker/control.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/numa.h"

#define CONTROL_MAGIC 0x43414853u
#define SEND_LOOK_MS 1000

typedef struct {
    uint32_t magic;
    uint16_t version, kind;
    uint32_t bytes; /* of the body */
    uint32_t has_fd;
} control_head_t;

_Static_assert(sizeof(control_head_t) + sizeof(control_message_t) <= CONTROL_MESSAGE_BYTES_MAX,
               "every message fits a packet");

/* The size of a body with its list in use; SIZE_MAX when the kind or the count makes no sense. */
static size_t body_bytes(const control_message_t *message)
{
    switch (message->kind) {
    case CONTROL_START:
        return sizeof message->start;
    case CONTROL_EPOCH:
        if (message->epoch.n_peers > FABRIC_RANKS_MAX)
            return SIZE_MAX;
        return offsetof(rank_epoch_t, peers) +
               message->epoch.n_peers * sizeof message->epoch.peers[0];
    case CONTROL_DRAIN:
    case CONTROL_STOP:
    case CONTROL_LOADED:
        return 0;
    case CONTROL_HELLO:
        return sizeof message->hello;
    case CONTROL_BEAT:
        return sizeof message->beat;
    case CONTROL_PREPARED:
        return sizeof message->prepared;
    case CONTROL_ACTIVE:
        return sizeof message->active;
    case CONTROL_FAILED:
        if (message->failed.n_sessions > CONTROL_SESSIONS_MAX)
            return SIZE_MAX;
        return offsetof(control_failed_t, sessions) +
               message->failed.n_sessions * sizeof message->failed.sessions[0];
    }
    return SIZE_MAX;
}

/* The part of a body that holds the count of its list. */
static size_t fixed_bytes(control_kind_t kind, const control_message_t *message)
{
    if (kind == CONTROL_EPOCH)
        return offsetof(rank_epoch_t, peers);
    if (kind == CONTROL_FAILED)
        return offsetof(control_failed_t, sessions);
    return body_bytes(message);
}

size_t control_encode(const control_message_t *message, uint8_t *out)
{
    size_t n = body_bytes(message);
    CHECK(n != SIZE_MAX);
    control_head_t head = {CONTROL_MAGIC, CONTROL_VERSION, (uint16_t)message->kind, (uint32_t)n,
                           message->fd >= 0};
    memcpy(out, &head, sizeof head);
    memcpy(out + sizeof head, &message->start, n);
    return sizeof head + n;
}

static bool is_text(const char *text, size_t n)
{
    return memchr(text, 0, n) != NULL;
}
#define IS_TEXT(array) is_text((array), sizeof(array))

static bool start_is_good(const rank_start_t *start)
{
    return IS_TEXT(start->replica) && IS_TEXT(start->model_path) && IS_TEXT(start->model_digest) &&
           IS_TEXT(start->activations) && IS_TEXT(start->kv) && IS_TEXT(start->quantize) &&
           IS_TEXT(start->draft_path) && IS_TEXT(start->draft_digest) && IS_TEXT(start->host) &&
           IS_TEXT(start->address) && IS_TEXT(start->data_dir) && IS_TEXT(start->trace_path) &&
           start->n_ranks > 0 && start->n_ranks <= FABRIC_RANKS_MAX &&
           start->rank < start->n_ranks && start->tp > 0 && start->tp <= FABRIC_RANKS_MAX &&
           start->stages > 0 && start->tp * start->stages == start->n_ranks &&
           start->slice < start->tp && start->stage < start->stages &&
           start->expert_groups <= start->tp && start->attention_slices <= start->tp &&
           start->attention_replicas <= start->tp && start->numa_node <= NUMA_ID_MAX &&
           start->rank == start->stage * start->tp + start->slice;
}

static bool epoch_is_good(const rank_epoch_t *epoch)
{
    for (uint32_t i = 0; i < epoch->n_peers; i++) {
        if (!IS_TEXT(epoch->peers[i].host) ||
            epoch->peers[i].address_bytes > FABRIC_ADDRESS_BYTES_MAX)
            return false;
    }
    return epoch->n_peers > 0;
}

static bool failed_is_good(const control_failed_t *failed)
{
    for (uint32_t i = 0; i < failed->n_sessions; i++) {
        if (!IS_TEXT(failed->sessions[i]))
            return false;
    }
    return IS_TEXT(failed->lost_host) && IS_TEXT(failed->text);
}

static bool content_is_good(const control_message_t *message)
{
    switch (message->kind) {
    case CONTROL_START:
        return start_is_good(&message->start);
    case CONTROL_EPOCH:
        return epoch_is_good(&message->epoch);
    case CONTROL_HELLO:
        return message->hello.address_bytes <= FABRIC_ADDRESS_BYTES_MAX;
    case CONTROL_ACTIVE:
        return IS_TEXT(message->active.leader) && IS_TEXT(message->active.text_identity);
    case CONTROL_FAILED:
        return failed_is_good(&message->failed);
    default:
        return true;
    }
}

status_t control_decode(const uint8_t *bytes, size_t n, control_message_t *out)
{
    control_head_t head;
    if (n < sizeof head)
        return fail(STATUS_INVALID, "control: a packet of %zu bytes", n);
    memcpy(&head, bytes, sizeof head);
    if (head.magic != CONTROL_MAGIC || head.version != CONTROL_VERSION)
        return fail(STATUS_INVALID, "control: a packet of version %u; %u is right", head.version,
                    CONTROL_VERSION);
    memset(out, 0, sizeof *out);
    out->kind = (control_kind_t)head.kind;
    out->fd = -1;
    size_t body = n - sizeof head;
    size_t fixed = fixed_bytes(out->kind, out);
    if (fixed == SIZE_MAX)
        return fail(STATUS_INVALID, "control: no message of kind %u", head.kind);
    if (body != head.bytes || body < fixed)
        return fail(STATUS_INVALID, "control: message %u has %zu bytes", head.kind, body);
    memcpy(&out->start, bytes + sizeof head, fixed);
    if (body_bytes(out) != body)
        return fail(STATUS_INVALID, "control: message %u has %zu bytes where %zu are right",
                    head.kind, body, body_bytes(out));
    memcpy((uint8_t *)&out->start + fixed, bytes + sizeof head + fixed, body - fixed);
    if (!content_is_good(out))
        return fail(STATUS_INVALID, "control: message %u holds what it must not", head.kind);
    return STATUS_OK;
}

static void attach_fd(struct msghdr *header, char *space, size_t n, int fd)
{
    header->msg_control = space;
    header->msg_controllen = n;
    struct cmsghdr *part = CMSG_FIRSTHDR(header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
}

status_t control_try_send(int socket, const control_message_t *message, bool *sent_out)
{
    uint8_t bytes[CONTROL_MESSAGE_BYTES_MAX];
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {bytes, control_encode(message, bytes)};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t n;
    if (message->fd >= 0)
        attach_fd(&header, space, sizeof space, message->fd);
    do
        n = sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EAGAIN && errno != ENOBUFS)
        return fail(STATUS_PEER_LOST, "control: cannot send message %d: %m", (int)message->kind);
    *sent_out = n >= 0;
    return STATUS_OK;
}

status_t control_send(int socket, const control_message_t *message)
{
    for (;;) {
        bool sent = false;
        TRY(control_try_send(socket, message, &sent));
        if (sent)
            return STATUS_OK;
        /* Also ends when the other side closes. ENOBUFS is the kernel's own want of memory, of
         * which poll knows nothing, so it is looked again now and then. */
        struct pollfd fd = {.fd = socket, .events = POLLOUT};
        if (poll(&fd, 1, SEND_LOOK_MS) > 0 && (fd.revents & POLLOUT))
            poll(NULL, 0, 1);
    }
}

/* The descriptors that came along: keeps the first one, closes any other. */
static int take_fd(struct msghdr *header)
{
    int kept = -1;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (kept < 0)
                kept = fd;
            else
                close(fd);
        }
    }
    return kept;
}

status_t control_receive(int socket, control_message_t *out, bool *got_out)
{
    uint8_t bytes[CONTROL_MESSAGE_BYTES_MAX];
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int) * 4)];
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = space,
                            .msg_controllen = sizeof space};
    *got_out = false;
    ssize_t n;
    do
        n = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return STATUS_OK;
    if (n <= 0)
        return fail(STATUS_PEER_LOST, "control: the other side is gone");
    int fd = take_fd(&header);
    status_t status = STATUS_INVALID;
    if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        fail(STATUS_INVALID, "control: a packet that is too long");
    else
        status = control_decode(bytes, (size_t)n, out);
    bool wanted = out->kind == CONTROL_EPOCH || out->kind == CONTROL_START;
    if (status != STATUS_OK || !wanted) {
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    if (status != STATUS_OK)
        return status;
    out->fd = fd;
    *got_out = true;
    return STATUS_OK;
}
