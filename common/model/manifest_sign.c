/* Ed25519 signatures of seals, with keys in PEM as `openssl genpkey -algorithm ed25519` makes them.
 * libcrypto does the work. */
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/manifest_internal.h"

enum { KEY_BYTES_MAX = 16 * 1024, SIGNATURE_BYTES = 64 };

/* An encrypted key must not make a program ask at a terminal. */
static int no_password(char *out, int n, int writing, void *context)
{
    (void)out, (void)n, (void)writing, (void)context;
    return -1;
}

static status_t read_key(const char *path, bool private_key, EVP_PKEY **own_out)
{
    buffer_t text = {0};
    status_t status = manifest_read_file(path, KEY_BYTES_MAX, &text);
    EVP_PKEY *key = NULL;
    if (status == STATUS_OK) {
        BIO *bio = BIO_new_mem_buf(buffer_text(&text), (int)text.size);
        CHECK(bio != NULL);
        key = private_key ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL)
                          : PEM_read_bio_PUBKEY(bio, NULL, no_password, NULL);
        BIO_free(bio);
        if (key == NULL || EVP_PKEY_get_id(key) != EVP_PKEY_ED25519)
            status = fail(STATUS_INVALID, "%s: not an Ed25519 %s key in PEM", path,
                          private_key ? "private" : "public");
    }
    if (private_key && text.data != NULL)
        explicit_bzero(text.data, text.size);
    buffer_release(&text);
    if (status != STATUS_OK) {
        EVP_PKEY_free(key);
        return status;
    }
    *own_out = key;
    return STATUS_OK;
}

status_t manifest_sign(const char *key_path, const buffer_t *seal, uint8_t signature_out[64])
{
    EVP_PKEY *key;
    TRY(read_key(key_path, true, &key));
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    CHECK(context != NULL);
    size_t n = SIGNATURE_BYTES;
    bool good = EVP_DigestSignInit(context, NULL, NULL, NULL, key) == 1 &&
                EVP_DigestSign(context, signature_out, &n, seal->data, seal->size) == 1 &&
                n == SIGNATURE_BYTES;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    return good ? STATUS_OK : fail(STATUS_INTERNAL, "%s: cannot sign with it", key_path);
}

static status_t check(const char *path, const char *public_key_path, const buffer_t *seal,
                      const buffer_t *signature)
{
    if (signature->size != SIGNATURE_BYTES)
        return fail(STATUS_INVALID, "%s.sig: %zu bytes; a signature has %d", path, signature->size,
                    SIGNATURE_BYTES);
    EVP_PKEY *key;
    TRY(read_key(public_key_path, false, &key));
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    CHECK(context != NULL);
    bool good = EVP_DigestVerifyInit(context, NULL, NULL, NULL, key) == 1 &&
                EVP_DigestVerify(context, signature->data, signature->size, seal->data,
                                 seal->size) == 1;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    return good ? STATUS_OK
                : fail(STATUS_INVALID, "%s: the signature beside it is not by the key %s", path,
                       public_key_path);
}

status_t manifest_check_signature(const char *model_path, const char *public_key_path)
{
    char *path = manifest_path(model_path);
    char *signature_path = mem_format("%s.sig", path);
    buffer_t seal = {0}, signature = {0};
    status_t status = manifest_read_file(path, MANIFEST_BYTES_MAX, &seal);
    if (status == STATUS_OK) {
        status = manifest_read_file(signature_path, KEY_BYTES_MAX, &signature);
        if (status == STATUS_NOT_FOUND)
            status = fail(STATUS_INVALID, "%s: it is not signed; %s is missing", path,
                          signature_path);
    }
    if (status == STATUS_OK)
        status = check(path, public_key_path, &seal, &signature);
    buffer_release(&seal);
    buffer_release(&signature);
    free(signature_path);
    free(path);
    return status;
}
