#include "adapter.h"

#include "embedding.h"
#include "format.h"

#include "unet/file.h"
#include "unet/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct adapter_format adapter_format_lora, adapter_format_loha, adapter_format_lokr,
    adapter_format_full, adapter_format_ia3, adapter_format_glora, adapter_format_oft,
    adapter_format_shira;

static const struct adapter_format *const formats[] = {
    &adapter_format_lora, &adapter_format_loha,  &adapter_format_lokr, &adapter_format_full,
    &adapter_format_ia3,  &adapter_format_glora, &adapter_format_oft,  &adapter_format_shira,
};
/* Whole files that are spelt in a way of their own. */
extern const struct adapter_layout adapter_layout_cloneofsimo, adapter_layout_mix_of_show;

static const struct adapter_layout *const layouts[] = {&adapter_layout_cloneofsimo,
                                                       &adapter_layout_mix_of_show};
#define N_FORMAT (sizeof formats / sizeof *formats)

/* Pieces of keys that say which kind of adapter a file is, of those that weft cannot use. */
static const char *const kinds[][2] = {
    {"lora_controlnet", "a ControlNet as a LoRA, which steers by a picture"},
    {"lora_E", "AdaLoRA"},
    {"vera_", "VeRA"},
    {"randlora_", "RandLoRA"},
    {"miss_block", "MiSS"},
    {"bone_block", "Bone"},
    {"hra_u", "HRA"},
    {"fourierft_", "FourierFT"},
    {"vblora_", "VB-LoRA"},
    {"c3a_", "C3A"},
    {"hira_", "HiRA"},
    {"delora_", "DeLoRA"},
    {"glora_", "PEFT's GLoRA"},
    {"oft_r", "an OFT of an early PEFT"},
    {"set_weight", "one that replaces weights"},
    {"bias_indices", "one with sparse biases"},
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

/* One module through every family that has parts in it; all of its parts must be used. */
static int import_module(const struct module *m, const struct peft *peft, struct delta_list *list,
                         int *uses, struct err *err)
{
    uint64_t present = 0, used = 0;
    for (int p = 0; p < PART_COUNT; p++)
        present |= m->part[p] ? PART_BIT(p) : 0;
    for (size_t i = 0; i < N_FORMAT; i++) {
        if (!(present & formats[i]->parts))
            continue;
        int rc = formats[i]->import(m, peft, list, err);
        if (rc < 0)
            return rc;
        used |= formats[i]->parts | formats[i]->shared;
        uses[i]++;
    }
    if (!used)
        return err_set(err, ERR_FORMAT, "has only alpha and none of its factors");
    if (present & ~used)
        return err_set(err, ERR_UNSUPPORTED, "has a part that does not go with its other parts");
    return 0;
}

static int count_known(const struct tensor_file *f)
{
    int n = 0;
    for (size_t i = 0; i < tensor_file_count(f); i++)
        n += module_knows(tensor_file_name(f, i));
    return n;
}

static bool is_model(const struct tensor_file *f)
{
    return tensor_file_find(f, "conv_in.weight") ||
           tensor_file_find(f, "model.diffusion_model.out.2.weight");
}

/* Every module to the families that it has parts of. */
static int import_modules(const struct tensor_file *f, const char *path, struct delta_list *list,
                          const struct adapter_format **format, const char **style, struct err *err)
{
    struct modules m = {NULL, 0};
    struct peft peft = {NULL, false};
    int uses[N_FORMAT] = {0}, best = 0;

    int rc = modules_read(&m, f, path, err);
    rc = rc < 0 ? rc : peft_open(&peft, f, path, err);
    rc = rc < 0 ? rc : peft_check(&peft, path, err);
    for (int i = 0; i < m.n && rc == 0; i++) {
        rc = import_module(&m.at[i], &peft, list, uses, err);
        if (rc < 0)
            err_prefix(err, "%s: %s", path, m.at[i].site);
    }
    for (size_t i = 0; i < N_FORMAT; i++)
        best = uses[i] > uses[best] ? (int)i : best;
    *format = formats[best];
    *style = m.n ? m.at[0].style : "";
    peft_close(&peft);
    modules_release(&m);
    return rc;
}

/* The layout that takes more of the file's keys than are plain, or NULL. */
static const struct adapter_layout *layout_of(const struct tensor_file *f)
{
    const struct adapter_layout *best = NULL;
    int most = count_known(f);
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        int n = layouts[i]->claims(f);
        if (n > most) {
            most = n;
            best = layouts[i];
        }
    }
    return best;
}

static int import_rest(const struct tensor_file *f, const struct adapter_layout *layout,
                       const char *path, struct delta_list *list,
                       const struct adapter_format **format, const char **style, struct err *err)
{
    struct tensor_file *view = NULL;
    if (is_model(f) || (!layout && !count_known(f)))
        return unknown(f, path, err);
    int rc = layout ? layout->view(&view, f, path, err) : 0;
    rc = rc < 0 ? rc : import_modules(view ? view : f, path, list, format, style, err);
    if (layout)
        *style = layout->name;
    tensor_file_close(view);
    return rc;
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
    const struct adapter_layout *layout = layout_of(st); /* words are part of what tells it */
    struct tensor_file *rest = NULL;
    size_t n = 0;
    int rc = 0;
    for (size_t i = 0; i < tensor_file_count(st); i++)
        n += embedding_owns(st, i);
    if (n && n == tensor_file_count(st))
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: this is a textual inversion, a word for prompts: --embedding takes it",
                       path);
    if (n)
        rc = tensor_file_view(&rest, st, not_embedding, NULL, err);
    rc = rc < 0 ? rc : import_rest(rest ? rest : st, layout, path, list, format, style, err);
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

static int open_file(struct adapter_file **out, const char *path, bool copy, struct err *err)
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
    if (rc == 0)
        rc = copy ? tensor_file_read(&f->st, f->path, err) : tensor_file_open(&f->st, f->path, err);
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

int adapter_file_open(struct adapter_file **out, const char *path, struct err *err)
{
    return open_file(out, path, false, err);
}

int adapter_file_read(struct adapter_file **out, const char *path, struct err *err)
{
    return open_file(out, path, true, err);
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
