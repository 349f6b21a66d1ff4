/* pair_fixture.h: a whole tiny UNet with two adapters, beside a golden.
 *
 *     struct fixture f;
 *     fixture_open(&f, "cpu", ISA_BEST, "gates-out.safetensors");
 *     fixture_close(&f);
 */
#ifndef WEFT_TESTS_PAIR_FIXTURE_H
#define WEFT_TESTS_PAIR_FIXTURE_H

#include "store/adapter.h"
#include "unet/bind.h"
#include "unet/gates.h"
#include "unet/model.h"
#include "unet/safetensors.h"
#include "unet/tape.h"
#include "util.h"

#include <criterion/criterion.h>
#include <string.h>

#define DATA "tests/golden/data/"

struct fixture {
    struct device *dev;
    struct model *m;
    struct safetensors *in, *want; /* what the UNet is given; the golden */
    struct adapter_file *file[2];
    struct adapter *a[2];
    struct gates *gates;
    struct run r;
    struct tape *t;
};

static inline void fixture_open(struct fixture *f, const char *backend, enum isa isa,
                                const char *golden)
{
    static const char *const name[] = {DATA "lora-peft.safetensors",
                                       DATA "lora-diffusers.safetensors"};
    struct bind_report report = {0};
    struct err err;
    memset(f, 0, sizeof *f);
    f->dev = test_device_isa(backend, isa, 2);
    cr_assert_eq(model_open(&f->m, f->dev, DATA "tiny-sd1", &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(&f->in, DATA "tiny-sd1/golden.safetensors", &err), 0);
    cr_assert_eq(safetensors_open(&f->want, golden, &err), 0, "%s", err.msg);
    cr_assert_eq(gates_open(&f->gates, f->dev, &f->m->sites, DATA "gates.safetensors", &err), 0,
                 "%s", err.msg);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(adapter_file_open(&f->file[i], name[i], &err), 0, "%s", err.msg);
        cr_assert_eq(adapter_bind(&f->a[i], f->dev, &f->m->sites, &f->file[i]->list, "a", false,
                                  &report, &err),
                     0, "%s", err.msg);
    }
    bind_report_release(&report);
    run_init(&f->r, f->dev);
    cr_assert_eq(tape_new(&f->t, &err), 0);
}

static inline void fixture_close(struct fixture *f)
{
    tape_free(f->t);
    run_release(&f->r);
    gates_close(f->gates);
    for (int i = 0; i < 2; i++) {
        adapter_free(f->a[i]);
        adapter_file_close(f->file[i]);
    }
    safetensors_close(f->in);
    safetensors_close(f->want);
    model_close(f->m);
    device_close(f->dev);
}

#endif
