#include "device.h"

#include <string.h>

struct option *device_options(struct option *o, struct device_choice *c)
{
    const struct option table[DEVICE_ROWS] = {
        {"threads", 't', OPTION_INT, &c->threads, "N", "default: all processors", 1, 1024, NULL},
        {"device", 0, OPTION_TEXT, &c->name, "NAME",
         "cpu, cuda, ref (slow, the reference), or auto, the default: cuda\nwhere there is one", 0,
         0, NULL},
        {"precision", 0, OPTION_TEXT, &c->precision, "TYPE",
         "f32, f16 or bf16, sums are f32; default f16 on cuda; cpu has f32", 0, 0, NULL},
        {"isa", 0, OPTION_TEXT, &c->isa, "NAME", "hold our own kernels to avx512, avx2 or plain", 0,
         0, NULL},
    };
    memcpy(o, table, sizeof table);
    return o + DEVICE_ROWS;
}

static int read_isa(const char *name, enum isa *out, struct err *err)
{
    static const char *const isa[] = {"best", "plain", "avx2", "avx512"};
    int i = 0;
    while (name && i < 4 && strcmp(isa[i], name))
        i++;
    *out = (enum isa)i;
    return i < 4 ? 0
                 : err_set(err, ERR_ARG, "no instruction set '%.40s'; known: plain, avx2, avx512",
                           name);
}

static int read_precision(const char *name, bool gpu, enum dtype *out, struct err *err)
{
    if (!name)
        *out = gpu ? DT_F16 : DT_F32;
    else if (!strcmp(name, "f32"))
        *out = DT_F32;
    else if (!strcmp(name, "f16"))
        *out = DT_F16;
    else if (!strcmp(name, "bf16"))
        *out = DT_BF16;
    else
        return err_set(err, ERR_ARG, "no precision '%.40s'; known: f32, f16, bf16", name);
    return 0;
}

int device_choose(struct device **out, const struct device_choice *c, struct err *err)
{
    const char *name = c->name ? c->name : "auto";
    bool gpu = !strcmp(name, "auto") || !strcmp(name, "cuda");
    struct device_options o = {.threads = c->threads};
    int rc = read_isa(c->isa, &o.isa, err);
    rc = rc < 0 ? rc : read_precision(c->precision, gpu, &o.values, err);
    return rc < 0 ? rc : device_open(out, name, &o, err);
}
