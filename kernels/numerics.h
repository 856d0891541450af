/* The version of the written numbers (docs/numerics.md). It is part of every text identity: two
 * builds with the same version give the same bits, whatever instruction set, thread count, batch,
 * chunking or cut of the model they run with. Any change that can move one bit of one output
 * raises it. */
#ifndef SHOAL_KERNELS_NUMERICS_H
#define SHOAL_KERNELS_NUMERICS_H

#ifdef SHOAL_ONE_LEAF
/* A build that measures what leaves and their tree cost: each run of leaves is summed as one. Its
 * bits are those of no version, so it must never serve beside others: no text identity is 0. */
#define NUMERICS_VERSION 0
#define NUMERICS_ONE_LEAF 1
#else
#define NUMERICS_VERSION 3
#define NUMERICS_ONE_LEAF 0
#endif

enum {
    NUMERICS_LANES = 16,      /* row reductions and attention sums: lane = index mod 16 */
    NUMERICS_GROUP = 32,      /* activation groups end at multiples of this of absolute K */
    NUMERICS_APART = 2,       /* values of an int8 row of one leaf that are multiplied apart */
    NUMERICS_LEAVES_MAX = 16, /* leaves of one matmul */
    NUMERICS_KEY_TILE = 64,   /* attention: keys per running-maximum step */
    NUMERICS_KEY_CHUNK = 512, /* attention: keys per independently started partial */
};

#endif
