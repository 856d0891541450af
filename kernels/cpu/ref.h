/* The kernels of level "ref", file by file; levels.c makes the table. */
#ifndef SHOAL_KERNELS_CPU_REF_H
#define SHOAL_KERNELS_CPU_REF_H

#include "kernels/cpu/internal.h"

void matmul_ref(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end, uint32_t row_first,
                uint32_t row_end);
void rmsnorm_ref(const float *x, const float *weight, uint32_t n, float eps, float *out);
bool quantize_ref(const kinput_t *layout, const float *x, uint8_t *row_out);
void tree_add_ref(const tree_program_t *program, const float *const *inputs, const float *bias,
                  const float *residual, float *out, uint32_t first, uint32_t end);
void silu_mul_ref(const float *gate, const float *up, uint32_t n, float *out);
void activate_ref(const kactivate_t *what, const float *gate, const float *up, uint32_t n,
                  float *out);
void softcap_ref(float *x, uint32_t n, float cap);
void turn_ref(krope_pairs_t pairs, const float *turns, uint32_t half, float *head);
void attend_ref(const kattend_t *job);
void score_ref(const kscore_t *job);

#endif
