/* The repository as a library: what files are, how they are found again, and what survives. */
#include "repo_fixture.h"
#include "small_lora.h"
#include "store/facts.h"
#include "store/repo.h"
#include "unet/file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define SITE "lora_unet_down_blocks_0_attentions_0_transformer_blocks_"

static void sync_all(struct fixture *f)
{
    struct repo_add how = {.event = on_event, .user = f};
    texts_release(&f->event);
    cr_assert_eq(repo_sync(f->r, &how, &f->sum, &f->err), 0, "%s", f->err.msg);
}

/* The only event begins so. */
static void expect_event(const struct fixture *f, const char *words)
{
    cr_assert_eq(f->event.n, 1, "%d events", f->event.n);
    cr_expect(!strncmp(f->event.item[0], words, strlen(words)), "'%s', not '%s'", f->event.item[0],
              words);
}

static void expect_verify(struct fixture *f, int checked, int damaged, int missing, int orphaned)
{
    struct repo_report p;
    cr_assert_eq(repo_verify(f->r, NULL, 0, &p, NULL, NULL, &f->err), 0, "%s", f->err.msg);
    cr_expect_eq(p.checked, checked, "%d checked", (int)p.checked);
    cr_expect_eq(p.damaged.n, damaged, "%d damaged: %s", p.damaged.n,
                 p.damaged.n ? p.damaged.item[0] : "");
    cr_expect_eq(p.missing.n, missing, "%d missing: %s", p.missing.n,
                 p.missing.n ? p.missing.item[0] : "");
    cr_expect_eq(p.orphaned.n, orphaned, "%d orphaned: %s", p.orphaned.n,
                 p.orphaned.n ? p.orphaned.item[0] : "");
    repo_report_release(&p);
}

/* ---- bringing in ----------------------------------------------------------------------------- */

Test(repo, add_unchanged_duplicate_changed)
{
    struct fixture f;
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "a.safetensors"), false);
    expect_event(&f, "added a ");
    cr_expect(f.sum.bytes_read > 0);
    add(&f, at(&f, "a.safetensors"), false);
    expect_event(&f, "unchanged a ");
    cr_expect_eq(f.sum.bytes_read, 0, "an unchanged file was read again");
    /* the same tensors under another name and metadata */
    small_lora(at(&f, "b.safetensors"),
               &(struct small){.seed = 1, .meta = {{"ss_output_name", "run"}}});
    add(&f, at(&f, "b.safetensors"), false);
    expect_event(&f, "duplicate b the same tensors, other metadata, as a");
    struct repo_adapter a = get(&f, "a"), b = get(&f, "b"), c;
    struct texts twins = {0};
    cr_expect_str_eq(a.data_sha256, b.data_sha256);
    cr_expect_str_neq(a.file_sha256, b.file_sha256);
    cr_expect_str_neq(a.id, b.id);
    cr_expect_eq(repo_texts(f.r, a.key, REPO_TWINS, &twins, &f.err), 0);
    cr_expect(twins.n == 1 && !strcmp(twins.item[0], "b"));
    /* other weights under the same path: the row is renewed and keeps its id */
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 2, .rank = 4});
    cr_expect_eq(repo_check(f.r, &a, &f.err), ERR_MISMATCH);
    cr_expect(strstr(f.err.msg, "other weights") && strstr(f.err.msg, "weft sync"), "%s",
              f.err.msg);
    add(&f, at(&f, "a.safetensors"), false);
    expect_event(&f, "added a its weights are others");
    c = get(&f, "a");
    cr_expect_str_eq(a.id, c.id);
    cr_expect_str_neq(a.data_sha256, c.data_sha256);
    cr_expect_eq(c.rank[1], 4);
    cr_expect_eq(repo_check(f.r, &c, &f.err), 0);
    texts_release(&twins);
    repo_adapter_release(&a);
    repo_adapter_release(&b);
    repo_adapter_release(&c);
    fixture_close(&f);
}

Test(repo, what_is_refused_and_what_is_kept)
{
    struct fixture f;
    FILE *file;
    fixture_open(&f);
    mkdir(at(&f, "in"), 0777);
    small_lora(at(&f, "in/ada.safetensors"),
               &(struct small){.a = SITE "0_attn2_to_k.lora_down.weight",
                               .b = SITE "0_attn2_to_k.lora_E",
                               .width = 768});
    small_lora(at(&f, "in/model.safetensors"),
               &(struct small){.a = "conv_in.weight", .b = "conv_out.weight"});
    small_lora(at(&f, "in/half.safetensors"),
               &(struct small){.a = SITE "0_attn1_to_k.lora_down.weight",
                               .b = SITE "0_attn1_to_q.lora_up.weight"});
    small_lora(at(&f, "in/good.safetensors"), &(struct small){.seed = 5});
    file = fopen(at(&f, "in/junk.safetensors"), "w");
    fputs("{\"not\": \"tensors\"}", file);
    fclose(file);
    file = fopen(at(&f, "in/old.ckpt"), "w");
    fputs("pickle", file);
    fclose(file);
    file = fopen(at(&f, "in/readme.txt"), "w");
    fclose(file);
    add(&f, at(&f, "in"), false);
    cr_expect_eq(f.sum.added, 2, "%d added", f.sum.added);
    cr_expect_eq(f.sum.refused, 4, "%d refused", f.sum.refused);
    for (int i = 0; i < f.event.n; i++)
        if (!strncmp(f.event.item[i], "refused", 7))
            cr_expect_gt(strlen(f.event.item[i]), 20, "no reason: %s", f.event.item[i]);
    struct repo_adapter a = get(&f, "ada");
    cr_expect(a.unusable && strstr(a.unusable, "AdaLoRA"));
    cr_expect_null(a.format);
    repo_adapter_release(&a);
    fixture_close(&f);
}

Test(repo, metadata_and_sidecars)
{
    struct fixture f;
    struct texts t = {0};
    FILE *file;
    fixture_open(&f);
    small_lora(at(&f, "kiki.safetensors"),
               &(struct small){
                   .meta = {{"ss_output_name", "kiki_v3"},
                            {"ss_tag_frequency", "{\"10_kiki girl\":{\"kiki\":40,\"broom\":12},"
                                                 "\"2_x\":{\"broom\":1}}"},
                            {"sshs_model_hash", "0xdeadbeef"},
                            {"modelspec.tags", "witch, film"}}});
    file = fopen(at(&f, "kiki.json"), "w");
    fputs("{\"activation text\": \"kiki, black dress\", \"preferred weight\": 0.7, "
          "\"notes\": \"best at 0.7\"}",
          file);
    fclose(file);
    file = fopen(at(&f, "kiki.civitai.info"), "w");
    fputs(
        "{\"trainedWords\": [\"kiki\", \"kiki, black dress\"], \"model\": {\"name\": \"Kiki's\"}}",
        file);
    fclose(file);
    file = fopen(at(&f, "kiki.metadata.json"), "w");
    fputs("{broken", file);
    fclose(file);
    file = fopen(at(&f, "kiki.preview.png"), "w");
    fclose(file);
    add(&f, at(&f, "kiki.safetensors"), false);
    expect_event(&f, "added kiki .metadata.json: no JSON object");
    struct repo_adapter a = get(&f, "kiki_v3");
    cr_expect_str_eq(a.name, "kiki");
    cr_expect_eq(a.strength, 0.7);
    cr_expect_str_eq(a.notes, "best at 0.7");
    cr_expect_str_eq(a.declared_hash, "0xdeadbeef");
    cr_expect(a.preview && strstr(a.preview, "kiki.preview.png"));
    cr_assert_eq(repo_texts(f.r, a.key, REPO_TRIGGERS, &t, &f.err), 0);
    cr_expect(t.n == 2 && !strcmp(t.item[0], "kiki, black dress") && !strcmp(t.item[1], "kiki"));
    texts_release(&t);
    cr_assert_eq(repo_texts(f.r, a.key, REPO_CANDIDATES, &t, &f.err), 0);
    cr_expect(t.n == 1 && !strcmp(t.item[0], "broom"), "%d candidates", t.n);
    texts_release(&t);
    cr_assert_eq(repo_texts(f.r, a.key, REPO_TAGS, &t, &f.err), 0);
    cr_expect(t.n == 2 && !strcmp(t.item[0], "film"));
    texts_release(&t);
    repo_adapter_release(&a);
    fixture_close(&f);
}

static int write_small(const char *path)
{
    static int seed = 100;
    small_lora(path, &(struct small){.seed = seed++});
    return access(path, R_OK);
}

/* A name of any bytes, folders 4,000 bytes deep, links in circles. */
Test(repo, names_may_hold_anything)
{
    struct fixture f;
    char deep[4200], back[64];
    fixture_open(&f);
    mkdir(at(&f, "in"), 0777);
    cr_assert_eq(write_small(at(&f, "in/new\nline\ttab\x01.safetensors")), 0);
    cr_assert_eq(write_small(at(&f, "in/\xff\xfe not utf8.safetensors")), 0);
    cr_assert_eq(write_small(at(&f, "in/it's 100% \"odd\".safetensors")), 0);
    cr_assert_eq(symlink(at(&f, "in"), at(&f, "in/circle")), 0);
    cr_assert_eq(symlink("nowhere", at(&f, "in/dead.safetensors")), 0);
    snprintf(deep, sizeof deep, "%s/in", f.dir);
    cr_assert(getcwd(back, sizeof back) || errno == ERANGE);
    while (strlen(deep) < 3850) {
        size_t n = strlen(deep);
        deep[n] = '/';
        memset(deep + n + 1, 'd', 200);
        deep[n + 201] = 0;
        cr_assert_eq(mkdir(deep, 0777), 0, "%s", strerror(errno));
    }
    strcat(deep, "/deep.safetensors");
    cr_assert_eq(write_small(deep), 0);
    add(&f, at(&f, "in"), false);
    cr_expect_eq(f.sum.added, 4, "%d added, %d refused", f.sum.added, f.sum.refused);
    add(&f, at(&f, "in"), true);
    cr_expect_eq(f.sum.unchanged, 4, "%d unchanged, now as copies", f.sum.unchanged);
    struct repo_adapter a = get(&f, "new_line_tab_"), b = get(&f, "__ not utf8");
    cr_expect(strstr(a.source, "new\nline"), "%s", a.source);
    cr_expect(strstr(b.source, "\xff\xfe"), "%s", b.source);
    expect_verify(&f, 4, 0, 0, 0);
    repo_adapter_release(&a);
    repo_adapter_release(&b);
    fixture_close(&f);
}

/* Two files of one stem, and one that is a link to another. */
Test(repo, names_are_unique)
{
    struct fixture f;
    fixture_open(&f);
    mkdir(at(&f, "in"), 0777);
    mkdir(at(&f, "in/x"), 0777);
    mkdir(at(&f, "in/y"), 0777);
    write_small(at(&f, "in/x/same.safetensors"));
    write_small(at(&f, "in/y/same.safetensors"));
    cr_assert_eq(symlink("x/same.safetensors", at(&f, "in/z.safetensors")), 0);
    add(&f, at(&f, "in"), false);
    cr_expect_eq(f.sum.added, 2, "%d added", f.sum.added);
    cr_expect_eq(f.sum.duplicate + f.sum.refused, 0);
    struct repo_adapter a = get(&f, "same"), b = get(&f, "same-2");
    cr_expect_neq(a.key, b.key);
    cr_expect_eq(repo_set(f.r, b.key, REPO_NAME, "same", &f.err), ERR_MISMATCH);
    cr_expect_eq(repo_set(f.r, b.key, REPO_NAME, "a/b", &f.err), ERR_ARG);
    cr_expect_eq(repo_set(f.r, b.key, REPO_NAME, "", &f.err), ERR_ARG);
    cr_expect_eq(repo_set(f.r, b.key, REPO_NAME, "other:1@x", &f.err), 0);
    repo_adapter_release(&a);
    a = get(&f, "other:1@x");
    cr_expect_str_eq(a.id, b.id);
    repo_adapter_release(&a);
    repo_adapter_release(&b);
    fixture_close(&f);
}

/* ---- finding --------------------------------------------------------------------------------- */

Test(repo, references)
{
    struct fixture f;
    struct repo_adapter a, b;
    char prefix[16];
    fixture_open(&f);
    small_lora(at(&f, "one.safetensors"),
               &(struct small){.seed = 1, .meta = {{"ss_output_name", "run"}}});
    small_lora(at(&f, "two.safetensors"),
               &(struct small){.seed = 2, .meta = {{"ss_output_name", "run"}}});
    small_lora(at(&f, "three.safetensors"),
               &(struct small){.seed = 3, .meta = {{"ss_output_name", "one"}}});
    add(&f, f.dir, false);
    a = get(&f, "one"); /* a name goes before an alias */
    cr_expect_str_eq(a.name, "one");
    cr_expect_eq(repo_find(f.r, "run", &b, &f.err), ERR_MISMATCH);
    cr_expect(strstr(f.err.msg, "one (") && strstr(f.err.msg, "two ("), "%s", f.err.msg);
    const char *refs[] = {a.id, a.data_sha256, a.file_sha256, a.path};
    for (int i = 0; i < 4; i++) {
        b = get(&f, refs[i]);
        cr_expect_eq(b.key, a.key, "%s", refs[i]);
        repo_adapter_release(&b);
    }
    snprintf(prefix, sizeof prefix, "%.6s", a.file_sha256);
    b = get(&f, prefix);
    cr_expect_eq(b.key, a.key);
    repo_adapter_release(&b);
    snprintf(prefix, sizeof prefix, "%.5s", a.file_sha256);
    cr_expect_eq(repo_find(f.r, prefix, &b, &f.err), 1, "five digits may be a word");
    char capitals[11] = "";
    for (int i = 0; i < 10; i++)
        capitals[i] = (char)toupper((unsigned char)a.file_sha256[i]);
    b = get(&f, capitals); /* as Civitai shows AutoV2 */
    cr_expect_eq(b.key, a.key);
    repo_adapter_release(&b);
    cr_expect_eq(repo_find(f.r, "", &b, &f.err), 1);
    cr_expect_eq(repo_find(f.r, "on", &b, &f.err), 1);
    cr_expect_eq(repo_need(f.r, "on", &b, &f.err), ERR_IO);
    cr_expect(strstr(f.err.msg, "near to it: one"), "%s", f.err.msg);
    repo_adapter_release(&a);
    fixture_close(&f);
}

/* ---- sync ------------------------------------------------------------------------------------ */

Test(repo, sync_finds_what_moved)
{
    struct fixture f;
    fixture_open(&f);
    mkdir(at(&f, "in"), 0777);
    mkdir(at(&f, "in/sub"), 0777);
    small_lora(at(&f, "in/a.safetensors"), &(struct small){.seed = 1});
    small_lora(at(&f, "in/b.safetensors"), &(struct small){.seed = 2});
    add(&f, at(&f, "in"), false);
    struct repo_adapter a = get(&f, "a"), b;
    cr_assert_eq(repo_tag(f.r, a.key, "mine", true, &f.err), 0);
    cr_assert_eq(rename(at(&f, "in/a.safetensors"), at(&f, "in/sub/other.safetensors")), 0);
    small_lora(at(&f, "in/new.safetensors"), &(struct small){.seed = 3});
    unlink(at(&f, "in/b.safetensors"));
    cr_expect_eq(repo_check(f.r, &a, &f.err), ERR_IO);
    cr_expect(strstr(f.err.msg, "weft sync"), "%s", f.err.msg);
    sync_all(&f);
    cr_expect_eq(f.sum.relinked, 1);
    cr_expect_eq(f.sum.added, 1);
    cr_expect_eq(f.sum.missing, 1);
    b = get(&f, "a");
    cr_expect_str_eq(a.id, b.id);
    cr_expect(strstr(b.path, "sub/other.safetensors"), "%s", b.path);
    cr_expect_eq(list(&f, (struct repo_filter){.tag = "mine"}, "a"), 1);
    cr_expect_eq(list(&f, (struct repo_filter){.missing = true}, "b"), 1);
    /* it comes back */
    small_lora(at(&f, "in/b.safetensors"), &(struct small){.seed = 2});
    sync_all(&f);
    cr_expect_eq(f.sum.missing, 0);
    cr_expect_eq(list(&f, (struct repo_filter){.missing = true}, NULL), 0);
    /* nothing to do reads nothing */
    sync_all(&f);
    cr_expect_eq(f.sum.bytes_read, 0);
    cr_expect_eq(f.sum.unchanged, 3);
    repo_adapter_release(&a);
    repo_adapter_release(&b);
    fixture_close(&f);
}

Test(repo, folders_are_forgotten_and_our_own_is_not_walked)
{
    struct fixture f;
    fixture_open(&f);
    mkdir(at(&f, "in"), 0777);
    small_lora(at(&f, "in/a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "in"), true);
    cr_assert_eq(symlink("home", at(&f, "way")), 0);
    add(&f, f.dir, false); /* the repository lies in it, and once more behind a link */
    cr_expect_eq(f.sum.added + f.sum.duplicate, 0, "%d added, %d duplicate", f.sum.added,
                 f.sum.duplicate);
    small_lora(at(&f, "in/b.safetensors"), &(struct small){.seed = 2});
    cr_expect_eq(repo_forget_folder(f.r, at(&f, "in"), &f.err), 0);
    cr_expect_eq(repo_forget_folder(f.r, at(&f, "in"), &f.err), 1);
    cr_expect_eq(repo_forget_folder(f.r, f.dir, &f.err), 0);
    sync_all(&f);
    cr_expect_eq(f.sum.added, 0);
    fixture_close(&f);
}

/* What an older weft could only keep is looked at again. */
Test(repo, sync_retries_what_could_not_be_rendered)
{
    struct fixture f;
    sqlite3 *db;
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "a.safetensors"), true);
    cr_assert_eq(sqlite3_open(at(&f, "home/weft.db"), &db), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(db, "UPDATE adapter SET unusable = 'too new', format = NULL", NULL,
                              NULL, NULL),
                 SQLITE_OK);
    sqlite3_close(db);
    sync_all(&f);
    expect_event(&f, "changed a weft can render it now");
    struct repo_adapter a = get(&f, "a");
    cr_expect(!a.unusable && a.format && !strcmp(a.format, "lora"));
    unlink(a.path);
    cr_expect_eq(repo_check(f.r, &a, &f.err), ERR_IO);
    cr_expect(strstr(f.err.msg, "add the file again"), "%s", f.err.msg);
    expect_verify(&f, 1, 0, 1, 0);
    repo_adapter_release(&a);
    fixture_close(&f);
}

/* ---- copies ---------------------------------------------------------------------------------- */

Test(repo, copies_are_kept_and_collected)
{
    struct fixture f;
    struct texts removed = {0};
    int64_t bytes = 0;
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "a.safetensors"), true);
    unlink(at(&f, "a.safetensors"));
    struct repo_adapter a = get(&f, "a");
    cr_expect(a.copied && strstr(a.path, a.file_sha256));
    cr_expect_eq(repo_check(f.r, &a, &f.err), 0, "%s", f.err.msg);
    expect_verify(&f, 1, 0, 0, 0);
    cr_expect_eq(repo_export(f.r, &a, at(&f, "out.safetensors"), &f.err), 0, "%s", f.err.msg);
    /* the original is made anew with other weights: both are kept */
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 2});
    add(&f, at(&f, "a.safetensors"), true);
    expect_event(&f, "added a-2 ");
    expect_verify(&f, 2, 0, 0, 0);
    cr_assert_eq(repo_remove(f.r, a.key, &f.err), 0);
    expect_verify(&f, 1, 0, 0, 1);
    cr_assert_eq(repo_gc(f.r, true, &removed, &bytes, &f.err), 0);
    cr_expect_eq(removed.n, 1);
    expect_verify(&f, 1, 0, 0, 1);
    texts_release(&removed);
    cr_assert_eq(repo_gc(f.r, false, &removed, &bytes, &f.err), 0);
    cr_expect(removed.n == 1 && bytes == a.bytes);
    expect_verify(&f, 1, 0, 0, 0);
    texts_release(&removed);
    repo_adapter_release(&a);
    fixture_close(&f);
}

/* The original of a copy moves: it is the same adapter still, and no twin of itself. */
Test(repo, originals_of_copies_may_move)
{
    struct fixture f;
    fixture_open(&f);
    mkdir(at(&f, "in"), 0777);
    small_lora(at(&f, "in/a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "in"), true);
    cr_assert_eq(rename(at(&f, "in/a.safetensors"), at(&f, "in/b.safetensors")), 0);
    sync_all(&f);
    cr_expect_eq(f.sum.relinked, 1, "%d relinked, %d duplicate", f.sum.relinked, f.sum.duplicate);
    struct repo_adapter a = get(&f, "a");
    cr_expect(a.copied && strstr(a.source, "/in/b.safetensors"), "%s", a.source);
    cr_expect_eq(repo_check(f.r, &a, &f.err), 0, "%s", f.err.msg);
    expect_verify(&f, 1, 0, 0, 0);
    sync_all(&f);
    cr_expect(f.sum.unchanged == 1 && !f.sum.relinked);
    repo_adapter_release(&a);
    fixture_close(&f);
}

static void write_text(const char *path, const char *text)
{
    struct err err;
    cr_assert_eq(file_replace(path, text, strlen(text), &err), 0, "%s", err.msg);
}

/* The config beside PEFT weights is part of what they mean. */
Test(repo, peft_config_goes_with_its_weights)
{
    struct fixture f;
    char *text = NULL;
    fixture_open(&f);
    mkdir(at(&f, "knit"), 0777);
    small_lora(
        at(&f, "knit/adapter_model.safetensors"),
        &(struct small){.a = "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight",
                        .b = "base_model.model.mid_block.attentions.0.proj_in.lora_B.weight"});
    write_text(at(&f, "knit/adapter_config.json"), "{\"r\": 2, \"lora_alpha\": 8}");
    add(&f, at(&f, "knit"), true);
    expect_event(&f, "added knit ");
    struct repo_adapter a = get(&f, "knit");
    cr_expect(a.config_sha256 && strstr(a.path, "/adapter_model.safetensors"));
    expect_verify(&f, 1, 0, 0, 0);
    cr_expect_eq(repo_export(f.r, &a, at(&f, "out"), &f.err), 0, "%s", f.err.msg);
    cr_assert_eq(file_read(&text, NULL, at(&f, "out/adapter_config.json"), 1000, &f.err), 0);
    cr_expect_str_eq(text, "{\"r\": 2, \"lora_alpha\": 8}");
    free(text);
    /* another alpha is another adapter, be the weights the same */
    write_text(at(&f, "knit/adapter_config.json"), "{\"r\": 2, \"lora_alpha\": 2}");
    add(&f, at(&f, "knit"), true);
    cr_expect_eq(f.sum.duplicate, 1, "a new alpha went unnoticed");
    struct repo_adapter b = get(&f, "knit-2");
    cr_expect_str_neq(a.path, b.path);
    cr_expect_eq(repo_check(f.r, &a, &f.err), 0, "%s", f.err.msg);
    expect_verify(&f, 2, 0, 0, 0);
    repo_adapter_release(&b);
    /* in place it is looked at before use */
    mkdir(at(&f, "lace"), 0777);
    small_lora(
        at(&f, "lace/adapter_model.safetensors"),
        &(struct small){.seed = 9,
                        .a = "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight",
                        .b = "base_model.model.mid_block.attentions.0.proj_in.lora_B.weight"});
    write_text(at(&f, "lace/adapter_config.json"), "{\"r\": 2, \"lora_alpha\": 8}");
    add(&f, at(&f, "lace"), false);
    b = get(&f, "lace");
    cr_expect_eq(repo_check(f.r, &b, &f.err), 0, "%s", f.err.msg);
    write_text(at(&f, "lace/adapter_config.json"), "{\"r\": 2, \"lora_alpha\": 4}");
    cr_expect_eq(repo_check(f.r, &b, &f.err), ERR_MISMATCH);
    cr_expect(strstr(f.err.msg, "adapter_config.json"), "%s", f.err.msg);
    repo_adapter_release(&a);
    repo_adapter_release(&b);
    fixture_close(&f);
}

/* ---- trouble --------------------------------------------------------------------------------- */

Test(repo, a_newer_schema_is_refused)
{
    struct fixture f;
    sqlite3 *db;
    fixture_open(&f);
    repo_close(f.r);
    f.r = NULL;
    cr_assert_eq(sqlite3_open(at(&f, "home/weft.db"), &db), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(db, "PRAGMA user_version = 1000", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    for (int mode = REPO_READ; mode <= REPO_WRITE; mode++) {
        cr_expect_eq(repo_open(&f.r, f.home, (enum repo_mode)mode, &f.err), ERR_UNSUPPORTED);
        cr_expect(strstr(f.err.msg, "newer weft") && strstr(f.err.msg, "1000"), "%s", f.err.msg);
        cr_expect_null(f.r);
    }
    fixture_close(&f);
}

/* Every page after the first is overwritten in turn: an error or the right answer, never a crash. */
Test(repo, corrupted_pages_are_errors)
{
    struct fixture f;
    char *good = NULL, noise[4096];
    size_t size = 0;
    int refused = 0, pages;
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "a.safetensors"), false);
    repo_close(f.r);
    f.r = NULL;
    cr_assert_eq(file_read(&good, &size, at(&f, "home/weft.db"), 1 << 24, &f.err), 0);
    memset(noise, 0x5a, sizeof noise);
    pages = (int)(size / sizeof noise);
    cr_assert_gt(pages, 10);
    for (int i = 0; i < pages; i++) {
        struct repo_adapter a = {0};
        struct repo_report p = {0};
        cr_assert_eq(file_replace(at(&f, "home/weft.db"), good, size, &f.err), 0);
        int fd = open(at(&f, "home/weft.db"), O_WRONLY);
        cr_assert_eq(pwrite(fd, noise, sizeof noise, (off_t)i * 4096), (ssize_t)sizeof noise);
        close(fd);
        int rc = repo_open(&f.r, f.home, REPO_READ, &f.err);
        rc = rc < 0 ? rc : repo_find(f.r, "a", &a, &f.err);
        rc = rc < 0 ? rc : repo_verify(f.r, NULL, 0, &p, NULL, NULL, &f.err);
        cr_expect(rc == 0 || rc == ERR_FORMAT, "page %d: %d %s", i, rc, f.err.msg);
        cr_expect(rc == 0 || strstr(f.err.msg, "damaged"), "page %d: %s", i, f.err.msg);
        refused += rc < 0 || p.damaged.n > 0;
        repo_report_release(&p);
        repo_adapter_release(&a);
        repo_close(f.r);
        f.r = NULL;
    }
    cr_expect_gt(refused, pages * 3 / 4, "only %d of %d damaged pages were noticed", refused,
                 pages);
    free(good);
    fixture_close(&f);
}

/* What a writer that was killed between names and rows leaves is taken back; what has a row, what no list
 * names and what belongs to a living writer stays. */
Test(repo, a_killed_writer_is_cleared_away)
{
    struct fixture f;
    char line[300];
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "a.safetensors"), true);
    struct repo_adapter a = get(&f, "a");
    mkdir(at(&f, "home/stage/dead"), 0777);
    write_text(at(&f, "home/stage/dead/lock"), "");
    write_text(at(&f, "home/stage/dead/0"), "half a copy");
    write_text(at(&f, "home/blobs/0/named.safetensors"), "x");
    write_text(at(&f, "home/blobs/0/unnamed.safetensors"), "x");
    snprintf(line, sizeof line,
             "blobs/0/named.safetensors\nblobs/%c/%s.safetensors\nblobs/../../a.safetensors\n",
             a.file_sha256[0], a.file_sha256);
    write_text(at(&f, "home/stage/dead/list"), line);
    expect_verify(&f, 1, 0, 0, 2);
    reopen(&f);
    expect_verify(&f, 1, 0, 0, 1);
    cr_expect(!file_exists(at(&f, "home/stage/dead")));
    cr_expect(!file_exists(at(&f, "home/blobs/0/named.safetensors")));
    cr_expect(file_exists(at(&f, "home/blobs/0/unnamed.safetensors")));
    cr_expect(file_exists(a.path), "a copy that has a row was taken back");
    cr_expect(file_exists(at(&f, "a.safetensors")), "a list led out of the repository");
    repo_adapter_release(&a);
    fixture_close(&f);
}

Test(repo, verify_names_damage)
{
    struct fixture f;
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    small_lora(at(&f, "b.safetensors"), &(struct small){.seed = 2});
    small_lora(at(&f, "c.safetensors"), &(struct small){.seed = 3});
    add(&f, f.dir, false);
    add(&f, at(&f, "c.safetensors"), true);
    struct repo_adapter a = get(&f, "a"), c = get(&f, "c");
    expect_verify(&f, 3, 0, 0, 0);
    unlink(at(&f, "b.safetensors"));
    int fd = open(c.path, O_WRONLY);
    cr_assert_eq(pwrite(fd, "!", 1, (off_t)c.bytes - 1), 1);
    close(fd);
    expect_verify(&f, 3, 1, 1, 0);
    struct repo_report p;
    cr_assert_eq(repo_verify(f.r, &a.key, 1, &p, NULL, NULL, &f.err), 0);
    cr_expect(p.checked == 1 && !p.damaged.n && !p.missing.n);
    repo_report_release(&p);
    cr_expect_eq(repo_export(f.r, &c, at(&f, "out"), &f.err), ERR_MISMATCH);
    cr_expect(!file_exists(at(&f, "out")), "a damaged file was handed out");
    /* added again, the copy is whole again */
    struct stat st;
    cr_assert_eq(stat(at(&f, "c.safetensors"), &st), 0);
    cr_assert_eq(utimensat(AT_FDCWD, at(&f, "c.safetensors"), NULL, 0), 0);
    add(&f, at(&f, "c.safetensors"), true);
    expect_verify(&f, 3, 0, 1, 0);
    repo_adapter_release(&a);
    repo_adapter_release(&c);
    fixture_close(&f);
}
