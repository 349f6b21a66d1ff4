#include "adapter.h"

#include "embedding.h"

#include "unet/file.h"
#include "unet/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct adapter_format *const formats[] = {
    &adapter_format_lora, &adapter_format_cloneofsimo, &adapter_format_ed_lora, NULL};

/* Pieces of keys that say which kind of adapter a file is, of those that weft cannot use. */
static const char *const kinds[][2] = {
    {"hada_", "LoHa"},
    {"lokr_", "LoKr"},
    {"dora_scale", "DoRA"},
    {"lora_magnitude_vector", "DoRA"},
    {"lora_mid", "LoCon with a middle factor"},
    {"boft_", "BOFT"},
    {"oft_", "OFT"},
    {"ia3_", "IA3"},
    {".on_input", "IA3"},
    {"shira_", "SHiRA"},
    {"lora_E", "AdaLoRA"},
    {"vera_", "VeRA"},
};

const char *adapter_kind_of_key(const char *key)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strstr(key, kinds[i][0]))
            return kinds[i][1];
    return NULL;
}

int adapter_refuse_kind(const char *kind, const char *path, const char *key, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "%s: this is %s ('%.160s'), which weft cannot use yet",
                   path, kind, key);
}

static const struct adapter_format *recognise(const struct tensor_file *st)
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
static int unknown(const struct tensor_file *st, const char *path, struct err *err)
{
    if (tensor_file_count(st) == 0)
        return err_set(err, ERR_FORMAT, "%s: holds no tensors at all", path);
    if (tensor_file_find(st, "conv_in.weight") ||
        tensor_file_find(st, "model.diffusion_model.out.2.weight"))
        return err_set(err, ERR_FORMAT, "%s: this is a whole model, not an adapter", path);
    for (size_t i = 0; i < tensor_file_count(st); i++) {
        const char *kind = adapter_kind_of_key(tensor_file_name(st, i));
        if (kind)
            return adapter_refuse_kind(kind, path, tensor_file_name(st, i), err);
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "%s: no adapter format weft knows; its first tensor is '%.200s'", path,
                   tensor_file_name(st, 0));
}

static const char *not_embedding(void *user, const struct tensor_file *f, size_t i, char *buf,
                                 size_t size)
{
    (void)user, (void)buf, (void)size;
    return embedding_owns(f, i) ? NULL : tensor_file_name(f, i);
}

int adapter_import(const struct tensor_file *st, const char *path, struct delta_list *list,
                   const struct adapter_format **format, const char **style, struct err *err)
{
    struct tensor_file *rest = NULL;
    size_t n = 0;
    int rc = 0;
    for (size_t i = 0; i < tensor_file_count(st); i++)
        n += embedding_owns(st, i);
    *format = recognise(st);
    if (n && n == tensor_file_count(st))
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: this is a textual inversion, a word for prompts: --embedding takes it",
                       path);
    if (n)
        rc = tensor_file_view(&rest, st, not_embedding, NULL, err);
    if (rc == 0)
        rc = *format ? (*format)->import(rest ? rest : st, path, list, style, err)
                     : unknown(st, path, err);
    tensor_file_close(rest);
    return rc;
}

/* The file of a PEFT folder: the newer form where both are there. */
static char *in_folder(const char *dir)
{
    char *st = file_join(dir, "adapter_model.safetensors");
    char *bin = file_join(dir, "adapter_model.bin");
    bool old = st && bin && file_kind(st) == 0 && file_kind(bin) == 1;
    free(old ? st : bin);
    return old ? bin : st;
}

int adapter_file_open(struct adapter_file **out, const char *path, struct err *err)
{
    struct adapter_file *f = calloc(1, sizeof *f);
    size_t size = 0;
    int rc = 0;

    *out = NULL;
    if (!f)
        return err_nomem(err, sizeof *f);
    f->name = file_stem(path);
    f->path = file_kind(path) == 2 ? in_folder(path) : strdup(path);
    if (!f->path || !f->name)
        rc = err_nomem(err, strlen(path));
    rc = rc < 0 ? rc : tensor_file_open(&f->st, f->path, err);
    rc = rc < 0 ? rc : adapter_import(f->st, f->path, &f->list, &f->format, &f->style, err);
    if (rc == 0) {
        const void *data = tensor_file_data(f->st, &size);
        rc = hash_bytes(f->data_sha256, data, size, err);
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
    tensor_file_close(f->st);
    free(f->path);
    free(f->name);
    free(f);
}
