/* The start-up check of a kernel level against ref on small recorded inputs. */
#ifndef SHOAL_KERNELS_CPU_SELFCHECK_H
#define SHOAL_KERNELS_CPU_SELFCHECK_H

#include "kernels/cpu/internal.h"

/* The name of the first kernel whose result differs from ref's in any bit, or NULL. Takes a few
 * milliseconds; pure apart from MXCSR, which it gives back. */
const char *selfcheck(const klevel_t *level);

#endif
