/* Exchanges of pieces, for the tests of both transports. */
#ifndef SHOAL_TESTS_UNIT_FABRIC_PIECES_H
#define SHOAL_TESTS_UNIT_FABRIC_PIECES_H

#include "ranks.h"

/* In a rank's process: rounds of pieces of many sizes in its group of n ranks, of which the first
 * n_a are on one host and the rest on another, with all-gathers between them. Member i gives i mod 3
 * pieces to each, so that some give none. Content, alignment and counted bytes are checked; what
 * goes to another host is the piece of its receiver alone. */
int pieces_traffic(fabric_t *fabric, uint32_t n, uint32_t n_a);

#endif
