/* weft gates, and --compose gated on the command line. */
#include "shell.h"

#include "unet/backend.h"
#include "unet/image.h"
#include "unet/safetensors.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#define KITE "assets/adapters/kite.safetensors"

/* Gates at two sites of the demo model, all channels alike: half open at one, at the other by the time. */
static const char *make_gates(struct shell *s)
{
    static float half[GATE_ROWS], late[GATE_ROWS];
    const char *path = in(s, "gates.safetensors");
    half[GATE_GAIN] = late[GATE_GAIN] = 1;
    late[GATE_TIME + GATE_WAVES / 2] = 3;
    struct safetensors_item item[] = {
        {.name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"},
        {.name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"},
    };
    const float *v[] = {half, late};
    struct err err;
    for (int i = 0; i < 2; i++)
        item[i].a = (struct array){.dtype = DT_F32, .ndim = 2, .dim = {GATE_ROWS, 1}, .data = v[i]};
    cr_assert_eq(safetensors_write(path, item, 2, NULL, 0, &err), 0, "%s", err.msg);
    return path;
}

Test(cli_gates, tells_and_draws)
{
    struct shell s;
    shell_open(&s);
    const char *gates = make_gates(&s);
    weft(&s, "gates", "a sks kite", "-a", KITE, "--gates", gates, "--steps", "3", "-o",
         in(&s, "map.png"), "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "attn2.to_v\":[0.5,0.5,0.5]"), "%s", s.out);
    cr_expect(strstr(s.out, "\"explained\""), "%s", s.out);
    struct image im = {0};
    struct err err;
    cr_expect_eq(image_read_png(in(&s, "map.png"), &im, NULL, &err), 0, "%s", err.msg);
    image_release(&im);
    shell_close(&s);
}

Test(cli_gates, wants_gates)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "an owl", "-m", "tests/golden/data/tiny-sd1", "-a",
         "tests/golden/data/lora-kohya.safetensors", "--compose", "gated", "-o", in(&s, "x.png"),
         NULL);
    cr_expect_eq(s.code, 2);
    cr_expect(strstr(s.err, "--gates FILE"), "%s", s.err);
    weft(&s, "gates", "a sks kite", "-a", KITE, "--gates", "tests/golden/data/gates.safetensors",
         NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "gates.safetensors: ") && strstr(s.err, "another model"), "%s", s.err);
    weft(&s, "gates", "a sks kite", "-a", KITE, "--gates", "README.md", NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "README.md: not a safetensors file"), "%s", s.err);
    weft(&s, "gates", "a sks kite", "--gates", make_gates(&s), NULL);
    cr_expect_eq(s.code, 2);
    cr_expect(strstr(s.err, "-a"), "%s", s.err);
    weft(&s, "gates", "a sks kite", "-a", KITE, "--compose", "merge", NULL);
    cr_expect_eq(s.code, 2);
    shell_close(&s);
}
