#include "adapter.h"

#include "unet/file.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct adapter_format adapter_format_lora;

static const struct adapter_format *const formats[] = {&adapter_format_lora, NULL};

int hash_sha256(char out[65], const void *data, size_t size, struct err *err)
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (!EVP_Digest(data, size, sum, &n, EVP_sha256(), NULL) || n != 32)
        return err_set(err, ERR_UNSUPPORTED, "OpenSSL has no SHA-256");
    for (unsigned i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", sum[i]);
    return 0;
}

/* The last part of a path, without ".safetensors" and slashes at its end. */
static char *stem_of(const char *path)
{
    static const char end[] = ".safetensors";
    size_t n = strlen(path), k = sizeof end - 1, from;
    while (n > 1 && path[n - 1] == '/')
        n--;
    for (from = n; from > 0 && path[from - 1] != '/';)
        from--;
    if (n - from > k && !memcmp(path + n - k, end, k))
        n -= k;
    return strndup(path + from, n - from);
}

static const struct adapter_format *recognise(const struct safetensors *st)
{
    const struct adapter_format *best = NULL;
    int most = 0;
    for (int i = 0; formats[i]; i++) {
        int n = formats[i]->claims(st);
        if (n > most) {
            most = n;
            best = formats[i];
        }
    }
    return best;
}

/* What a file is that no importer takes. */
static int unknown(const struct safetensors *st, const char *path, struct err *err)
{
    if (safetensors_count(st) == 0)
        return err_set(err, ERR_FORMAT, "%s: holds no tensors at all", path);
    if (safetensors_find(st, "conv_in.weight") ||
        safetensors_find(st, "model.diffusion_model.out.2.weight"))
        return err_set(err, ERR_FORMAT, "%s: this is a whole model, not an adapter", path);
    return err_set(err, ERR_UNSUPPORTED,
                   "%s: no adapter format weft knows; its first tensor is '%.200s'", path,
                   safetensors_name(st, 0));
}

int adapter_import(const struct safetensors *st, const char *path, struct delta_list *list,
                   const struct adapter_format **format, const char **style, struct err *err)
{
    *format = recognise(st);
    return *format ? (*format)->import(st, path, list, style, err) : unknown(st, path, err);
}

int adapter_file_open(struct adapter_file **out, const char *path, struct err *err)
{
    struct adapter_file *f = calloc(1, sizeof *f);
    size_t size = 0;
    int rc = 0;

    *out = NULL;
    if (!f)
        return err_nomem(err, sizeof *f);
    f->name = stem_of(path);
    f->path = file_kind(path) == 2 ? file_join(path, "adapter_model.safetensors") : strdup(path);
    if (!f->path || !f->name)
        rc = err_nomem(err, strlen(path));
    rc = rc < 0 ? rc : safetensors_open(&f->st, f->path, err);
    rc = rc < 0 ? rc : adapter_import(f->st, f->path, &f->list, &f->format, &f->style, err);
    if (rc == 0) {
        const void *data = safetensors_data(f->st, &size);
        rc = hash_sha256(f->data_sha256, data, size, err);
    }
    if (rc < 0) {
        adapter_file_close(f);
        return rc;
    }
    *out = f;
    return 0;
}

void adapter_file_close(struct adapter_file *f)
{
    if (!f)
        return;
    delta_list_release(&f->list);
    safetensors_close(f->st);
    free(f->path);
    free(f->name);
    free(f);
}
