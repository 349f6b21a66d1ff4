/* compose_fixture.h: the tiny model, three adapters and a prompt, for tests that make pictures.
 *
 *     fixture_open(&f, "an owl");
 *     p.use = f.use;
 *     …
 *     fixture_close(&f);
 */
#ifndef WEFT_TESTS_COMPOSE_FIXTURE_H
#define WEFT_TESTS_COMPOSE_FIXTURE_H

#include "compose/generate.h"
#include "store/adapter.h"
#include "unet/gates.h"
#include "util.h"

#include <criterion/criterion.h>

enum { N_LORA = 3 };
static const char *const loras[N_LORA] = {"tests/golden/data/lora-peft.safetensors",
                                          "tests/golden/data/lora-kohya.safetensors",
                                          "tests/golden/data/lora-diffusers.safetensors"};

struct fixture {
    struct device *dev;
    struct model *m;
    struct adapter_file *file[N_LORA];
    struct use use[N_LORA];
    struct gates *gates;
    struct prompt prompt, negative;
};

static inline void fixture_open(struct fixture *f, const char *prompt)
{
    static const char *const words[] = {"an owl", "castle"};
    struct err err;
    f->dev = test_device("cpu");
    cr_assert_eq(model_open(&f->m, f->dev, "tests/golden/data/tiny-sd1", &err), 0, "%s", err.msg);
    for (int i = 0; i < N_LORA; i++) {
        struct bind_report report = {0};
        struct adapter *a;
        cr_assert_eq(adapter_file_open(&f->file[i], loras[i], &err), 0, "%s", err.msg);
        cr_assert_eq(adapter_bind(&a, f->dev, &f->m->sites, &f->file[i]->list, loras[i], false,
                                  &report, &err),
                     0, "%s", err.msg);
        bind_report_release(&report);
        f->use[i] = (struct use){
            .adapter = a, .unet = 1 - .3f * (float)i, .te = .5f, .words = i < 2 ? words[i] : NULL};
    }
    cr_assert_eq(
        gates_open(&f->gates, f->dev, &f->m->sites, "tests/golden/data/gates.safetensors", &err), 0,
        "%s", err.msg);
    cr_assert_eq(prompt_read(&f->prompt, prompt, &err), 0);
    cr_assert_eq(prompt_read_negative(&f->negative, "mist", &err), 0);
}

static inline void fixture_close(struct fixture *f)
{
    for (int i = 0; i < N_LORA; i++) {
        adapter_free((struct adapter *)f->use[i].adapter);
        adapter_file_close(f->file[i]);
    }
    prompt_release(&f->prompt);
    prompt_release(&f->negative);
    gates_close(f->gates);
    model_close(f->m);
    device_close(f->dev);
}

#endif
