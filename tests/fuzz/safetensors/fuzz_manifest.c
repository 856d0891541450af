/* Any bytes as a model's seal. What opens is asked about each file that it has. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t n_max);

#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
static const char right[] = "# shoal manifest 1\n" ABC "  a.json\n" ABC
                            "  w\n# chunks 4096 5000 w\n#" ABC "\n#" ABC "\n";

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed)
{
    if ((n < 8 || seed % 64 == 0) && n_max >= sizeof right - 1) {
        n = sizeof right - 1;
        memcpy(data, right, n);
    }
    return LLVMFuzzerMutate(data, n, n_max);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static uint8_t file[5000];
    manifest_t *manifest;
    if (manifest_open_bytes("fuzz", data, n, &manifest) != STATUS_OK)
        return 0;
    for (size_t i = 0; i < manifest_n_files(manifest) && i < 16; i++) {
        /* It may be right: the fuzzer learns digests from the comparisons that it sees. */
        status_t status =
            manifest_check(manifest, manifest_name(manifest, i), file, sizeof file, 4090, 10);
        CHECK(status == STATUS_OK || status == STATUS_INVALID);
    }
    manifest_close(manifest);
    return 0;
}
