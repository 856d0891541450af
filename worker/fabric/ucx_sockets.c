/* Connections that lead nowhere. When UCX 1.13 destroys a worker it says goodbye on each TCP
 * connection that is still up, with a send that is repeated for as long as the kernel's buffer is
 * full; behind a cut link that is a quarter of an hour at full load. A connection that has been shut
 * down takes no bytes at all, which ends the loop. */
#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "worker/fabric/ucx.h"

/* Bytes are on their way and the other side has been silent for at least one time-out of TCP's. */
static bool leads_nowhere(int fd)
{
    struct tcp_info info;
    socklen_t n = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) == 0 &&
           (info.tcpi_state == TCP_ESTABLISHED || info.tcpi_state == TCP_CLOSE_WAIT) &&
           info.tcpi_unacked > 0 && info.tcpi_retransmits > 0;
}

uint32_t ucx_shut_stuck_sockets(void)
{
    uint32_t n_shut = 0;
    DIR *open_files = opendir("/proc/self/fd");
    if (!open_files)
        return 0;
    for (struct dirent *one; (one = readdir(open_files));) {
        char *end;
        long fd = strtol(one->d_name, &end, 10);
        if (end != one->d_name && *end == 0 && leads_nowhere((int)fd) &&
            shutdown((int)fd, SHUT_RDWR) == 0)
            n_shut++;
    }
    closedir(open_files);
    return n_shut;
}
