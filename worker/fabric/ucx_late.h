/* UCX's functions, opened by fabric_endpoint_open, so only in ranks whose replica spans hosts
 * (common/base/late.h): it brings libraries and threads of its own, and watches the process's memory
 * calls. One that is not in this list does not link. */
#ifndef SHOAL_WORKER_FABRIC_UCX_LATE_H
#define SHOAL_WORKER_FABRIC_UCX_LATE_H

#include <ucp/api/ucp.h>

#include "common/base/late.h"

#define UCX_LATE(X) \
    X(ucp_am_send_nbx) \
    X(ucp_cleanup) \
    X(ucp_config_modify) \
    X(ucp_config_read) \
    X(ucp_config_release) \
    X(ucp_ep_close_nbx) \
    X(ucp_ep_create) \
    X(ucp_init_version) \
    X(ucp_request_check_status) \
    X(ucp_request_free) \
    X(ucp_worker_arm) \
    X(ucp_worker_create) \
    X(ucp_worker_destroy) \
    X(ucp_worker_get_efd) \
    X(ucp_worker_progress) \
    X(ucp_worker_query) \
    X(ucp_worker_release_address) \
    X(ucp_worker_set_am_recv_handler) \
    X(ucs_status_string)

typedef struct {
    UCX_LATE(LATE_MEMBER)
} ucx_late_t;

extern ucx_late_t ucx_late;

/* Before any of the functions; more than once is fine. */
status_t ucx_late_open(void) MUST_USE;

#define ucp_am_send_nbx (*ucx_late.ucp_am_send_nbx_late)
#define ucp_cleanup (*ucx_late.ucp_cleanup_late)
#define ucp_config_modify (*ucx_late.ucp_config_modify_late)
#define ucp_config_read (*ucx_late.ucp_config_read_late)
#define ucp_config_release (*ucx_late.ucp_config_release_late)
#define ucp_ep_close_nbx (*ucx_late.ucp_ep_close_nbx_late)
#define ucp_ep_create (*ucx_late.ucp_ep_create_late)
#define ucp_init_version (*ucx_late.ucp_init_version_late)
#define ucp_request_check_status (*ucx_late.ucp_request_check_status_late)
#define ucp_request_free (*ucx_late.ucp_request_free_late)
#define ucp_worker_arm (*ucx_late.ucp_worker_arm_late)
#define ucp_worker_create (*ucx_late.ucp_worker_create_late)
#define ucp_worker_destroy (*ucx_late.ucp_worker_destroy_late)
#define ucp_worker_get_efd (*ucx_late.ucp_worker_get_efd_late)
#define ucp_worker_progress (*ucx_late.ucp_worker_progress_late)
#define ucp_worker_query (*ucx_late.ucp_worker_query_late)
#define ucp_worker_release_address (*ucx_late.ucp_worker_release_address_late)
#define ucp_worker_set_am_recv_handler (*ucx_late.ucp_worker_set_am_recv_handler_late)
#define ucs_status_string (*ucx_late.ucs_status_string_late)

#endif
