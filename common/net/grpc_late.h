/* gRPC's functions, opened by rpc_io_open (common/base/late.h says why): the files of the wrapper
 * call them by their own names. One that is not in this list, and below it, does not link. */
#ifndef SHOAL_COMMON_NET_GRPC_LATE_H
#define SHOAL_COMMON_NET_GRPC_LATE_H

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>

#include "common/base/late.h"

#define GRPC_LATE(X) \
    X(gpr_convert_clock_type) \
    X(gpr_free) \
    X(gpr_inf_future) \
    X(gpr_now) \
    X(gpr_set_log_function) \
    X(gpr_time_add) \
    X(gpr_time_cmp) \
    X(gpr_time_from_millis) \
    X(gpr_time_sub) \
    X(grpc_byte_buffer_destroy) \
    X(grpc_byte_buffer_reader_destroy) \
    X(grpc_byte_buffer_reader_init) \
    X(grpc_byte_buffer_reader_readall) \
    X(grpc_call_cancel) \
    X(grpc_call_details_destroy) \
    X(grpc_call_details_init) \
    X(grpc_call_failed_before_recv_message) \
    X(grpc_call_get_peer) \
    X(grpc_call_start_batch) \
    X(grpc_call_unref) \
    X(grpc_channel_check_connectivity_state) \
    X(grpc_channel_create) \
    X(grpc_channel_create_call) \
    X(grpc_channel_credentials_release) \
    X(grpc_channel_destroy) \
    X(grpc_channel_watch_connectivity_state) \
    X(grpc_completion_queue_create_for_next) \
    X(grpc_completion_queue_destroy) \
    X(grpc_completion_queue_next) \
    X(grpc_completion_queue_shutdown) \
    X(grpc_completion_queue_thread_local_cache_flush) \
    X(grpc_completion_queue_thread_local_cache_init) \
    X(grpc_empty_slice) \
    X(grpc_header_key_is_legal) \
    X(grpc_header_nonbin_value_is_legal) \
    X(grpc_init) \
    X(grpc_insecure_credentials_create) \
    X(grpc_insecure_server_credentials_create) \
    X(grpc_is_binary_header) \
    X(grpc_metadata_array_destroy) \
    X(grpc_metadata_array_init) \
    X(grpc_raw_byte_buffer_create) \
    X(grpc_server_add_http2_port) \
    X(grpc_server_cancel_all_calls) \
    X(grpc_server_create) \
    X(grpc_server_credentials_release) \
    X(grpc_server_destroy) \
    X(grpc_server_register_completion_queue) \
    X(grpc_server_request_call) \
    X(grpc_server_shutdown_and_notify) \
    X(grpc_server_start) \
    X(grpc_shutdown_blocking) \
    X(grpc_slice_from_copied_buffer) \
    X(grpc_slice_from_copied_string) \
    X(grpc_slice_from_static_string) \
    X(grpc_slice_unref)

typedef struct {
    GRPC_LATE(LATE_MEMBER)
} grpc_late_t;

extern grpc_late_t grpc_late;

/* Any thread, more than once; before any of the functions. */
status_t grpc_late_open(void) MUST_USE;

#define gpr_convert_clock_type (*grpc_late.gpr_convert_clock_type_late)
#define gpr_free (*grpc_late.gpr_free_late)
#define gpr_inf_future (*grpc_late.gpr_inf_future_late)
#define gpr_now (*grpc_late.gpr_now_late)
#define gpr_set_log_function (*grpc_late.gpr_set_log_function_late)
#define gpr_time_add (*grpc_late.gpr_time_add_late)
#define gpr_time_cmp (*grpc_late.gpr_time_cmp_late)
#define gpr_time_from_millis (*grpc_late.gpr_time_from_millis_late)
#define gpr_time_sub (*grpc_late.gpr_time_sub_late)
#define grpc_byte_buffer_destroy (*grpc_late.grpc_byte_buffer_destroy_late)
#define grpc_byte_buffer_reader_destroy (*grpc_late.grpc_byte_buffer_reader_destroy_late)
#define grpc_byte_buffer_reader_init (*grpc_late.grpc_byte_buffer_reader_init_late)
#define grpc_byte_buffer_reader_readall (*grpc_late.grpc_byte_buffer_reader_readall_late)
#define grpc_call_cancel (*grpc_late.grpc_call_cancel_late)
#define grpc_call_details_destroy (*grpc_late.grpc_call_details_destroy_late)
#define grpc_call_details_init (*grpc_late.grpc_call_details_init_late)
#define grpc_call_failed_before_recv_message (*grpc_late.grpc_call_failed_before_recv_message_late)
#define grpc_call_get_peer (*grpc_late.grpc_call_get_peer_late)
#define grpc_call_start_batch (*grpc_late.grpc_call_start_batch_late)
#define grpc_call_unref (*grpc_late.grpc_call_unref_late)
#define grpc_channel_check_connectivity_state \
    (*grpc_late.grpc_channel_check_connectivity_state_late)
#define grpc_channel_create (*grpc_late.grpc_channel_create_late)
#define grpc_channel_create_call (*grpc_late.grpc_channel_create_call_late)
#define grpc_channel_credentials_release (*grpc_late.grpc_channel_credentials_release_late)
#define grpc_channel_destroy (*grpc_late.grpc_channel_destroy_late)
#define grpc_channel_watch_connectivity_state \
    (*grpc_late.grpc_channel_watch_connectivity_state_late)
#define grpc_completion_queue_create_for_next \
    (*grpc_late.grpc_completion_queue_create_for_next_late)
#define grpc_completion_queue_destroy (*grpc_late.grpc_completion_queue_destroy_late)
#define grpc_completion_queue_next (*grpc_late.grpc_completion_queue_next_late)
#define grpc_completion_queue_shutdown (*grpc_late.grpc_completion_queue_shutdown_late)
#define grpc_completion_queue_thread_local_cache_flush \
    (*grpc_late.grpc_completion_queue_thread_local_cache_flush_late)
#define grpc_completion_queue_thread_local_cache_init \
    (*grpc_late.grpc_completion_queue_thread_local_cache_init_late)
#define grpc_empty_slice (*grpc_late.grpc_empty_slice_late)
#define grpc_header_key_is_legal (*grpc_late.grpc_header_key_is_legal_late)
#define grpc_header_nonbin_value_is_legal (*grpc_late.grpc_header_nonbin_value_is_legal_late)
#define grpc_init (*grpc_late.grpc_init_late)
#define grpc_insecure_credentials_create (*grpc_late.grpc_insecure_credentials_create_late)
#define grpc_insecure_server_credentials_create \
    (*grpc_late.grpc_insecure_server_credentials_create_late)
#define grpc_is_binary_header (*grpc_late.grpc_is_binary_header_late)
#define grpc_metadata_array_destroy (*grpc_late.grpc_metadata_array_destroy_late)
#define grpc_metadata_array_init (*grpc_late.grpc_metadata_array_init_late)
#define grpc_raw_byte_buffer_create (*grpc_late.grpc_raw_byte_buffer_create_late)
#define grpc_server_add_http2_port (*grpc_late.grpc_server_add_http2_port_late)
#define grpc_server_cancel_all_calls (*grpc_late.grpc_server_cancel_all_calls_late)
#define grpc_server_create (*grpc_late.grpc_server_create_late)
#define grpc_server_credentials_release (*grpc_late.grpc_server_credentials_release_late)
#define grpc_server_destroy (*grpc_late.grpc_server_destroy_late)
#define grpc_server_register_completion_queue \
    (*grpc_late.grpc_server_register_completion_queue_late)
#define grpc_server_request_call (*grpc_late.grpc_server_request_call_late)
#define grpc_server_shutdown_and_notify (*grpc_late.grpc_server_shutdown_and_notify_late)
#define grpc_server_start (*grpc_late.grpc_server_start_late)
#define grpc_shutdown_blocking (*grpc_late.grpc_shutdown_blocking_late)
#define grpc_slice_from_copied_buffer (*grpc_late.grpc_slice_from_copied_buffer_late)
#define grpc_slice_from_copied_string (*grpc_late.grpc_slice_from_copied_string_late)
#define grpc_slice_from_static_string (*grpc_late.grpc_slice_from_static_string_late)
#define grpc_slice_unref (*grpc_late.grpc_slice_unref_late)

#endif
