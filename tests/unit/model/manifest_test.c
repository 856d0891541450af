/* The seal: made, checked whole and by ranges, signed. Malformed seals are files, see
 * malformed_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/buffer.h"
#include "common/base/digest.h"
#include "common/base/memory.h"
#include "common/model/manifest.h"
#include "tests/unit/model/safetensors_draft.h"

#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" /* of "abc" */

static void test_what_sha256sum_writes_is_a_seal(void **state)
{
    (void)state;
    static const char seal[] = "# a comment\n" ABC " *b\n" ABC "  a b.json\n";
    manifest_t *manifest;
    assert_int_equal(manifest_open_bytes("seal", seal, sizeof seal - 1, &manifest), STATUS_OK);
    assert_int_equal(manifest_n_files(manifest), 2);
    assert_string_equal(manifest_name(manifest, 0), "a b.json");
    assert_string_equal(manifest_name(manifest, 1), "b");
    const uint8_t *abc = (const uint8_t *)"abc";
    assert_int_equal(manifest_check(manifest, "b", abc, 3, 1, 1), STATUS_OK);
    assert_int_equal(manifest_check(manifest, "b", abc, 3, 0, 0), STATUS_OK);
    assert_int_equal(manifest_check(manifest, "a b.json", abc, 2, 0, 1), STATUS_INVALID);
    assert_int_equal(manifest_check(manifest, "a b.json", abc, 0, 0, 0), STATUS_INVALID);
    assert_int_equal(manifest_check(manifest, "c", abc, 3, 0, 1), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "it does not seal c"));
    manifest_close(manifest);
}

/* --- ranges --- */

enum { CHUNK = 4096, FILE_BYTES = 3 * CHUNK + 100 };

static manifest_t *seal_of(const uint8_t *file, size_t n)
{
    buffer_t seal = {0};
    char hex[DIGEST_HEX_SIZE];
    digest_of_bytes(file, n, hex);
    buffer_format(&seal, "%s  w\n# chunks %d %zu w\n", hex, CHUNK, n);
    for (size_t at = 0; at < n; at += CHUNK) {
        digest_of_bytes(file + at, n - at < CHUNK ? n - at : CHUNK, hex);
        buffer_format(&seal, "#%s\n", hex);
    }
    manifest_t *manifest;
    assert_int_equal(manifest_open_bytes("seal", seal.data, seal.size, &manifest), STATUS_OK);
    buffer_release(&seal);
    return manifest;
}

static void test_a_range_is_checked_by_the_chunks_it_touches_and_only_once(void **state)
{
    (void)state;
    uint8_t *file = mem_new(FILE_BYTES, 1);
    for (size_t i = 0; i < FILE_BYTES; i++)
        file[i] = (uint8_t)(i * 31 >> 3);
    manifest_t *manifest = seal_of(file, FILE_BYTES);
    file[CHUNK + 7] ^= 1;
    file[3 * CHUNK + 50] ^= 1;
    assert_int_equal(manifest_check(manifest, "w", file, FILE_BYTES, 0, CHUNK), STATUS_OK);
    assert_int_equal(manifest_check(manifest, "w", file, FILE_BYTES, 2 * CHUNK, CHUNK), STATUS_OK);
    assert_int_equal(manifest_check(manifest, "w", file, FILE_BYTES, CHUNK - 1, 2), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "w is not as sealed: bytes 4096 to 8192 have changed"));
    assert_int_equal(manifest_check(manifest, "w", file, FILE_BYTES, FILE_BYTES - 1, 1),
                     STATUS_INVALID);
    assert_non_null(strstr(status_text(), "bytes 12288 to 12388 have changed"));
    /* What was right is remembered, what was wrong is looked at again. */
    file[0] ^= 1;
    assert_int_equal(manifest_check(manifest, "w", file, FILE_BYTES, 0, CHUNK), STATUS_OK);
    file[CHUNK + 7] ^= 1;
    assert_int_equal(manifest_check(manifest, "w", file, FILE_BYTES, CHUNK - 1, 2), STATUS_OK);
    assert_int_equal(manifest_check(manifest, "w", file, FILE_BYTES - 1, 0, 1), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "it has 12387 bytes, not 12388"));
    manifest_close(manifest);
    free(file);
}

/* --- whole models --- */

static void collect(void *context, const char *name, const char *problem)
{
    buffer_format(context, "%s%s%s\n", name, problem == NULL ? "" : ": ",
                  problem == NULL ? "" : problem);
}

static char *sealed_folder(void)
{
    char *folder = folder_new();
    buffer_t told = {0};
    folder_write_text(folder, "config.json", "{}");
    folder_write_text(folder, "empty", "");
    folder_write_text(folder, "w.safetensors", "abc");
    folder_write_text(folder, ".hidden", "x");
    assert_int_equal(manifest_seal(folder, NULL, collect, &told), STATUS_OK);
    assert_string_equal(buffer_text(&told), "config.json\nempty\nw.safetensors\n");
    buffer_release(&told);
    return folder;
}

/* Verifies, expects these words among what is told and in the failure, and removes the folder. */
static void check_wrong(char *take_folder, const char *words)
{
    buffer_t told = {0};
    assert_int_equal(manifest_verify(take_folder, NULL, collect, &told), STATUS_CONFLICT);
    if (strstr(buffer_text(&told), words) == NULL || strstr(status_text(), words) == NULL)
        fail_msg("told \"%s\", failed with \"%s\"; expected \"%s\"", buffer_text(&told),
                 status_text(), words);
    buffer_release(&told);
    folder_remove(take_folder);
}

static void test_a_sealed_folder_is_right_and_sha256sum_agrees(void **state)
{
    (void)state;
    char *folder = sealed_folder();
    buffer_t told = {0};
    assert_int_equal(manifest_verify(folder, NULL, collect, &told), STATUS_OK);
    assert_string_equal(buffer_text(&told), "config.json\nempty\nw.safetensors\n");
    char *command = mem_format("cd %s && sha256sum --check --strict --quiet manifest.sha256 >&2",
                               folder);
    assert_int_equal(system(command), 0);
    /* Sealing again gives the same bytes: the seal does not seal itself. */
    char *seal = mem_format("%s/manifest.sha256", folder);
    char first[DIGEST_HEX_SIZE], second[DIGEST_HEX_SIZE];
    assert_int_equal(digest_of_file(seal, first), STATUS_OK);
    assert_int_equal(manifest_seal(folder, NULL, collect, &told), STATUS_OK);
    assert_int_equal(digest_of_file(seal, second), STATUS_OK);
    assert_string_equal(first, second);
    free(seal);
    free(command);
    buffer_release(&told);
    folder_remove(folder);
}

static void test_changed_missing_additional_and_linked_files_are_named(void **state)
{
    (void)state;
    char *folder = sealed_folder();
    folder_write_text(folder, "w.safetensors", "abd");
    check_wrong(folder, "w.safetensors: its SHA-256 is a52d159f262b2c6d..., ba7816bf8f01cfea...");
    folder = sealed_folder();
    folder_write_text(folder, "config.json", "{} ");
    check_wrong(folder, "config.json: it has 3 bytes, 2 are sealed");
    folder = sealed_folder();
    folder_write_text(folder, "tokenizer.json", "{}");
    check_wrong(folder, "tokenizer.json: it is not sealed");
    folder = sealed_folder();
    char *path = mem_format("%s/empty", folder);
    assert_int_equal(unlink(path), 0);
    check_wrong(folder, "empty: it is missing");
    free(path);
    folder = sealed_folder();
    path = mem_format("%s/w.safetensors", folder);
    folder_write_text(folder, ".elsewhere", "abc"); /* the right content does not help */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(".elsewhere", path), 0);
    check_wrong(folder, "w.safetensors: it is a link");
    free(path);
}

static void test_chunks_that_contradict_their_file_are_seen(void **state)
{
    (void)state;
    char *folder = sealed_folder();
    folder_write_text(folder, "manifest.sha256",
                      ABC "  w.safetensors\n# chunks 4096 3 w.safetensors\n#" ABC "\n");
    check_wrong(folder, "config.json: it is not sealed");
    folder = folder_new();
    folder_write_text(folder, "w", "abc");
    folder_write_text(folder, "manifest.sha256",
                      ABC "  w\n# chunks 4096 3 w\n#"
                      "0000000000000000000000000000000000000000000000000000000000000000\n");
    check_wrong(folder, "w: the seal's chunks contradict its digest");
}

static void test_what_cannot_be_sealed_is_refused_by_name(void **state)
{
    (void)state;
    buffer_t told = {0};
    char *folder = folder_new();
    assert_int_equal(manifest_seal(folder, NULL, collect, &told), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "there is no file to seal"));
    folder_write_text(folder, "a", "abc");
    assert_int_equal(manifest_verify(folder, NULL, collect, &told), STATUS_NOT_FOUND);
    char *link = mem_format("%s/b", folder), *seal = mem_format("%s/manifest.sha256", folder);
    assert_int_equal(symlink("a", link), 0);
    assert_int_equal(manifest_seal(folder, NULL, collect, &told), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "/b: it is a link"));
    assert_int_not_equal(access(seal, F_OK), 0);
    assert_int_equal(manifest_seal("/nowhere/at/all", NULL, collect, &told), STATUS_NOT_FOUND);
    free(seal);
    free(link);
    buffer_release(&told);
    folder_remove(folder);
}

static void test_a_single_file_has_its_seal_beside_it(void **state)
{
    (void)state;
    char *folder = folder_new();
    char *path = mem_format("%s/m.gguf", folder);
    buffer_t told = {0};
    folder_write_text(folder, "m.gguf", "abc");
    folder_write_text(folder, "other.gguf", "abc");
    assert_int_equal(manifest_seal(path, NULL, collect, &told), STATUS_OK);
    assert_int_equal(manifest_verify(path, NULL, collect, &told), STATUS_OK);
    assert_string_equal(buffer_text(&told), "m.gguf\nm.gguf\n");
    manifest_t *manifest;
    assert_int_equal(manifest_open(path, &manifest), STATUS_OK);
    assert_int_equal(manifest_check(manifest, "m.gguf", (const uint8_t *)"abc", 3, 0, 3),
                     STATUS_OK);
    manifest_close(manifest);
    folder_write_text(folder, "m.gguf", "abx");
    assert_int_equal(manifest_verify(path, NULL, collect, &told), STATUS_CONFLICT);
    free(path);
    buffer_release(&told);
    folder_remove(folder);
}

/* --- signatures --- */

/* Writes NAME.pem and NAME.pub. */
static void write_keys(const char *folder, const char *name, int kind)
{
    EVP_PKEY *key = NULL;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_id(kind, NULL);
    assert_int_equal(EVP_PKEY_keygen_init(context), 1);
    assert_int_equal(EVP_PKEY_keygen(context, &key), 1);
    char *path = mem_format("%s/.%s.pem", folder, name);
    char *public_path = mem_format("%s/.%s.pub", folder, name);
    FILE *file = fopen(path, "we"), *public_file = fopen(public_path, "we");
    assert_int_equal(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
    assert_int_equal(PEM_write_PUBKEY(public_file, key), 1);
    fclose(file);
    fclose(public_file);
    free(path);
    free(public_path);
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(context);
}

static status_t verify_with(const char *folder, const char *key)
{
    buffer_t told = {0};
    char *path = mem_format("%s/.%s.pub", folder, key);
    status_t status = manifest_verify(folder, path, collect, &told);
    free(path);
    buffer_release(&told);
    return status;
}

static void test_a_signature_is_by_one_key_over_one_seal(void **state)
{
    (void)state;
    char *folder = sealed_folder();
    buffer_t told = {0};
    write_keys(folder, "good", EVP_PKEY_ED25519);
    write_keys(folder, "other", EVP_PKEY_ED25519);
    write_keys(folder, "x", EVP_PKEY_X25519);
    assert_int_equal(verify_with(folder, "good"), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "it is not signed"));
    char *key = mem_format("%s/.good.pem", folder), *wrong_kind = mem_format("%s/.x.pem", folder);
    char *signature = mem_format("%s/manifest.sha256.sig", folder);
    assert_int_equal(manifest_seal(folder, wrong_kind, collect, &told), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "not an Ed25519 private key"));
    assert_int_equal(manifest_seal(folder, key, collect, &told), STATUS_OK);
    assert_int_equal(verify_with(folder, "good"), STATUS_OK);
    assert_int_equal(verify_with(folder, "other"), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "is not by the key"));
    assert_int_equal(verify_with(folder, "x"), STATUS_INVALID);
    assert_int_equal(truncate(signature, 63), 0);
    assert_int_equal(verify_with(folder, "good"), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "63 bytes; a signature has 64"));
    /* A seal of other content beside the old signature. */
    assert_int_equal(manifest_seal(folder, key, collect, &told), STATUS_OK);
    folder_write_text(folder, "manifest.sha256", ABC "  w.safetensors\n");
    assert_int_equal(verify_with(folder, "good"), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "is not by the key"));
    /* Sealing without a key leaves no signature behind. */
    assert_int_equal(manifest_seal(folder, NULL, collect, &told), STATUS_OK);
    assert_int_not_equal(access(signature, F_OK), 0);
    free(signature);
    free(wrong_kind);
    free(key);
    buffer_release(&told);
    folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_sha256sum_writes_is_a_seal),
        cmocka_unit_test(test_a_range_is_checked_by_the_chunks_it_touches_and_only_once),
        cmocka_unit_test(test_a_sealed_folder_is_right_and_sha256sum_agrees),
        cmocka_unit_test(test_changed_missing_additional_and_linked_files_are_named),
        cmocka_unit_test(test_chunks_that_contradict_their_file_are_seen),
        cmocka_unit_test(test_what_cannot_be_sealed_is_refused_by_name),
        cmocka_unit_test(test_a_single_file_has_its_seal_beside_it),
        cmocka_unit_test(test_a_signature_is_by_one_key_over_one_seal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
