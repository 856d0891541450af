#include "hosts.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static char names[2][32];
static const char *const addresses[2] = {"10.211.7.1", "10.211.7.2"};

static bool shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool shell(const char *format, ...)
{
    char command[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    return system(command) == 0;
}

bool hosts_make(void)
{
    if (geteuid() != 0) {
        fprintf(stderr, "skipped: network namespaces need root\n");
        return false;
    }
    for (int i = 0; i < 2; i++)
        snprintf(names[i], sizeof names[i], "shoalf%d%c", (int)getpid() % 100000, 'a' + i);
    if (!shell("ip netns add %s && ip netns add %s", names[0], names[1]) ||
        !shell("ip link add vea type veth peer name veb netns %s 2>/dev/null && "
               "ip link set vea netns %s", names[1], names[0])) {
        hosts_remove();
        fprintf(stderr, "skipped: this machine makes no network namespaces or veth links\n");
        return false;
    }
    for (int i = 0; i < 2; i++) {
        if (!shell("ip -n %s addr add %s/24 dev ve%c && ip -n %s link set ve%c up && "
                   "ip -n %s link set lo up", names[i], addresses[i], 'a' + i, names[i], 'a' + i,
                   names[i]))
            abort();
    }
    return true;
}

void hosts_remove(void)
{
    for (int i = 0; i < 2; i++)
        shell("ip netns del %s 2>/dev/null", names[i]);
}

void hosts_link(bool up)
{
    if (!shell("ip -n %s link set vea %s", names[0], up ? "up" : "down"))
        abort();
}

static void enter(int host)
{
    char path[64];
    snprintf(path, sizeof path, "/run/netns/%s", names[host]);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) {
        perror("setns");
        exit(4);
    }
    close(fd);
    /* UCX lists interfaces in /sys, which shows those of the namespace that mounted it. */
    if (unshare(CLONE_NEWNS) != 0 || mount("", "/", "none", MS_SLAVE | MS_REC, NULL) != 0 ||
        umount2("/sys", MNT_DETACH) != 0 || mount("shoal", "/sys", "sysfs", 0, NULL) != 0) {
        perror("mounting /sys");
        exit(4);
    }
}

static void run_rank(host_rank_t *rank, uint32_t n_a, host_rank_fn function)
{
    fabric_config_t *config = &rank->config;
    shared_t *shared = rank->shared;
    int host = config->rank < n_a ? 0 : 1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    enter(host);
    if (fabric_endpoint_open(addresses[host], &rank->endpoint) != STATUS_OK) {
        fprintf(stderr, "rank %u: %s\n", config->rank, status_text());
        exit(3);
    }
    const uint8_t *bytes;
    size_t n_bytes;
    fabric_endpoint_address(rank->endpoint, &bytes, &n_bytes);
    memcpy(shared->bytes[config->rank], bytes, n_bytes);
    atomic_store(&shared->n_bytes[config->rank], (uint32_t)n_bytes);
    for (uint32_t i = 0; i < config->n_ranks; i++) {
        while (atomic_load(&shared->n_bytes[i]) == 0)
            usleep(1000);
        rank->peers[i] = (fabric_peer_t){.host = i < n_a ? "a" : "b",
                                         .address = shared->bytes[i],
                                         .address_bytes = atomic_load(&shared->n_bytes[i])};
    }
    config->peers = rank->peers;
    config->endpoint = rank->endpoint;
    int code = function(rank);
    fabric_endpoint_close(rank->endpoint);
    exit(code);
}

void hosts_start(ranks_t *ranks, uint32_t n, uint32_t n_a, uint32_t group_n,
                 uint32_t step_timeout_ms, host_rank_fn function)
{
    uint32_t local[FABRIC_RANKS_MAX];
    fabric_shm_t *shms[2] = {NULL, NULL};
    memset(ranks, 0, sizeof *ranks);
    ranks->n = n;
    ranks->shared = shared_new();
    for (uint32_t i = 0; i < n; i++)
        local[i] = i;
    if (fabric_shm_create(7, local, n_a, &shms[0]) != STATUS_OK ||
        fabric_shm_create(7, local + n_a, n - n_a, &shms[1]) != STATUS_OK)
        abort();
    fflush(NULL);
    for (uint32_t i = 0; i < n; i++) {
        ranks->pids[i] = fork();
        if (ranks->pids[i] != 0)
            continue;
        host_rank_t rank = {
            .config = {.incarnation = 1, .epoch = 7, .rank = i, .n_ranks = n,
                       .group_first = i / group_n * group_n, .group_n = group_n,
                       .shm_fd = fabric_shm_fd(shms[i < n_a ? 0 : 1]),
                       .step_timeout_ms = step_timeout_ms},
            .shared = ranks->shared,
        };
        run_rank(&rank, n_a, function);
    }
    fabric_shm_release(shms[0]);
    ranks->shm = shms[1]; /* host b's, so that a test can play its agent */
}

void hosts_start_bare(ranks_t *ranks, host_rank_fn function)
{
    memset(ranks, 0, sizeof *ranks);
    ranks->n = 1;
    ranks->shared = shared_new();
    fflush(NULL);
    ranks->pids[0] = fork();
    if (ranks->pids[0] != 0)
        return;
    host_rank_t rank = {.shared = ranks->shared};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    enter(0);
    exit(function(&rank));
}
