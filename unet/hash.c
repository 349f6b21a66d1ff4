#include "hash.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

/* EVP_MD_CTX under our own name. */
static EVP_MD_CTX *context(struct hash *h)
{
    return (EVP_MD_CTX *)h;
}

int hash_new(struct hash **out, struct err *err)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    *out = NULL;
    if (!c || !EVP_DigestInit_ex(c, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(c);
        return err_set(err, ERR_UNSUPPORTED, "OpenSSL has no SHA-256");
    }
    *out = (struct hash *)c;
    return 0;
}

void hash_add(struct hash *h, const void *bytes, size_t n)
{
    EVP_DigestUpdate(context(h), bytes, n);
}

void hash_end(struct hash *h, char hex[HASH_HEX])
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (!h)
        return;
    EVP_DigestFinal_ex(context(h), sum, &n);
    for (unsigned i = 0; hex && i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    EVP_MD_CTX_free(context(h));
}

int hash_bytes(char hex[HASH_HEX], const void *bytes, size_t n, struct err *err)
{
    struct hash *h = NULL;
    int rc = hash_new(&h, err);
    if (rc == 0)
        hash_add(h, bytes, n);
    hash_end(h, hex);
    return rc;
}

int hash_file(char hex[HASH_HEX], const char *path, struct err *err)
{
    char buf[1 << 16];
    struct hash *h = NULL;
    FILE *f = fopen(path, "rb");
    int rc = f ? hash_new(&h, err) : err_set(err, ERR_IO, "%s: %s", path, strerror(errno));
    size_t n;
    while (rc == 0 && (n = fread(buf, 1, sizeof buf, f)) > 0)
        hash_add(h, buf, n);
    if (rc == 0 && ferror(f))
        rc = err_set(err, ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
    hash_end(h, hex);
    if (f)
        fclose(f);
    return rc;
}
