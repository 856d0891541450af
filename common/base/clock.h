/* Time for the shells. Pure state machines never call these: they are told the time. */
#ifndef SHOAL_COMMON_BASE_CLOCK_H
#define SHOAL_COMMON_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_ms(void); /* monotonic, milliseconds */
uint64_t clock_ns(void); /* monotonic, nanoseconds */
uint64_t clock_unix_ms(void); /* wall clock, for what people read; never for a decision */

#endif
