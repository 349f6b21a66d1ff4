/* Gates against the training code (tests/golden/gates.py): a whole UNet with two adapters and with one. */
#include "store/adapter.h"
#include "unet/bind.h"
#include "unet/gates.h"
#include "unet/model.h"
#include "unet/ops.h"
#include "unet/safetensors.h"
#include "util.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define DATA "tests/golden/data/"

/* Relative error of the UNet's output. */
#define BOUND 1e-5

struct fixture {
    struct device *dev;
    struct model *m;
    struct safetensors *in, *want;
    struct adapter_file *file[2];
    struct adapter *a[2];
    struct gates *gates;
    struct run r;
};

static void fixture_open(struct fixture *f, enum isa isa)
{
    static const char *const name[] = {DATA "lora-peft.safetensors",
                                       DATA "lora-diffusers.safetensors"};
    struct bind_report report = {0};
    struct err err;
    f->dev = test_device_isa("cpu", isa, 2);
    cr_assert_eq(model_open(&f->m, f->dev, DATA "tiny-sd1", &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(&f->in, DATA "tiny-sd1/golden.safetensors", &err), 0);
    cr_assert_eq(safetensors_open(&f->want, DATA "gates-out.safetensors", &err), 0, "%s", err.msg);
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
}

static void fixture_close(struct fixture *f)
{
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

static struct tensor forward(struct fixture *f)
{
    static const double t[2] = {981, 21};
    size_t n;
    float *v = test_floats(f->in, "unet_square_x", &n);
    struct tensor x = run_tensor(&f->r, 2, 8, 8, (int)(n / 128)), c;
    op_upload(&f->r, &x, v);
    free(v);
    v = test_floats(f->in, "text", &n);
    c = run_tensor(&f->r, 2, 32, 1, (int)(n / 64));
    op_upload(&f->r, &c, v);
    free(v);
    return unet_forward(f->m->unet, &f->r, &x, t, &(struct unet_text){&c, 1}, NULL);
}

static void check(struct fixture *f, int n, const char *name)
{
    float wave[2][GATE_WAVES];
    struct joint *j = NULL;
    struct branch b[2];
    struct err err;
    size_t count;
    cr_assert_eq(joint_new(&j, &f->m->sites, COMPONENT_UNET, n, (const struct adapter *const *)f->a,
                           JOINT_GATE, &err),
                 0, "%s", err.msg);
    gate_waves(981, wave[0]);
    gate_waves(21, wave[1]);
    for (int i = 0; i < n; i++)
        b[i] = (struct branch){f->a[i], 0, 2, 1, j, i, {0, 0, 0}, true};
    f->r.branch = b;
    f->r.n_branch = n;
    f->r.gates = f->gates;
    f->r.wave = wave[0];
    run_measure(&f->r);
    forward(f);
    cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
    struct tensor y = forward(f);
    cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
    float *want = test_floats(f->want, name, &count), *got = malloc(count * sizeof *got);
    cr_assert_eq(count, tensor_count(&y));
    f->dev->be->download(f->dev, got, &y, &err);
    double e = test_error(got, want, count);
    cr_expect_leq(e, BOUND, "%s on %d: %g", name, (int)f->dev->isa, e);
    f->r.gates = NULL; /* without gates it is another output */
    run_measure(&f->r);
    forward(f);
    cr_assert_eq(run_commit(&f->r, &err), 0);
    y = forward(f);
    f->dev->be->download(f->dev, got, &y, &err);
    cr_expect_gt(test_error(got, want, count), 1e-3, "%s: the gates do nothing", name);
    free(want);
    free(got);
    run_reset(&f->r);
    run_bare(&f->r);
    joint_free(j);
}

Test(gates, as_they_were_trained)
{
    for (int isa = ISA_PLAIN; isa <= ISA_AVX512; isa++) {
        struct fixture f = {0};
        fixture_open(&f, (enum isa)isa);
        check(&f, 2, "both");
        check(&f, 1, "one");
        fixture_close(&f);
    }
}

/* What is told of gates is what they do: y gains gain o sigmoid(z) o u. */
Test(gates, values_are_what_is_computed)
{
    struct fixture f = {0};
    fixture_open(&f, ISA_BEST);
    int s = 0;
    while (!f.gates->at[s])
        s++;
    int c = f.m->sites.at[s].layer->out, places = 12;
    size_t n = (size_t)(places * c);
    float *h = malloc(n * sizeof *h), *u = malloc(n * sizeof *u), *got = malloc(n * sizeof *got),
          *want = malloc(n * sizeof *want), wave[GATE_WAVES];
    struct err err;
    test_fill(h, n, 1);
    test_fill(u, n, 2);
    gate_waves(321, wave);
    for (int i = 0; i < places; i++) {
        gates_values(f.gates, s, c, h + i * c, u + i * c, wave, want + i * c);
        for (int k = i * c; k < (i + 1) * c; k++) {
            cr_assert(want[k] >= 0 && want[k] <= 1);
            want[k] = h[k] + f.gates->host[s][GATE_GAIN * c + k % c] * want[k] * u[k];
        }
    }
    for (int live = 0; live < 2; live++) {
        if (!live)
            run_measure(&f.r);
        struct tensor y = run_tensor(&f.r, 1, 3, 4, c), t = run_tensor(&f.r, 1, 3, 4, c);
        const struct tensor *given = &t;
        const int width = 0;
        struct gating in = {1, NULL, NULL, &width, &given, f.gates->at[s], wave};
        op_upload(&f.r, &y, h);
        op_upload(&f.r, &t, u);
        op_gate(&f.r, &y, &y, &in);
        if (live)
            f.dev->be->download(f.dev, got, &y, &err);
        else
            cr_assert_eq(run_commit(&f.r, &err), 0);
    }
    double e = test_error(got, want, n);
    cr_expect_leq(e, 2e-6, "%g", e);
    free(h), free(u), free(got), free(want);
    fixture_close(&f);
}

/* Gates of another model are refused by name. */
Test(gates, of_another_model)
{
    struct fixture f = {0};
    struct model *other;
    struct gates *g = NULL;
    struct err err;
    fixture_open(&f, ISA_BEST);
    cr_assert_eq(model_open(&other, f.dev, "assets/model", &err), 0);
    cr_expect_eq(gates_open(&g, f.dev, &other->sites, DATA "gates.safetensors", &err),
                 ERR_MISMATCH);
    cr_expect(!g && strstr(err.msg, "another model"), "%s", err.msg);
    cr_expect_eq(gates_open(&g, f.dev, &other->sites, DATA "nothing.safetensors", &err), ERR_IO);
    model_close(other);
    fixture_close(&f);
}
