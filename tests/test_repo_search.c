/* Lists and searches of the repository. */
#include "repo_fixture.h"
#include "small_lora.h"

#include <sqlite3.h>
#include <sys/stat.h>

static int on_hit(void *user, const struct repo_adapter *a, double score, const char *why)
{
    struct hits *h = user;
    if (h->n++ == 0)
        snprintf(h->first, sizeof h->first, "%s", a->name);
    cr_expect(score > 0 && why && strchr(why, '['), "%s", why);
    return 0;
}

static int search(struct fixture *f, const char *words)
{
    struct hits h = {0};
    int rc = repo_search(f->r, words, 0, on_hit, &h, &f->err);
    return rc < 0 ? rc : h.n;
}

Test(repo, search_and_list)
{
    struct fixture f;
    fixture_open(&f);
    small_lora(at(&f, "ghibli_style.safetensors"), &(struct small){.seed = 1, .width = 768});
    small_lora(at(&f, "paper_cut.safetensors"),
               &(struct small){.seed = 2, .width = 1024, .rank = 8});
    small_lora(at(&f, "neon.safetensors"), &(struct small){.seed = 3, .width = 16});
    add(&f, f.dir, false);
    struct repo_adapter a = get(&f, "neon");
    cr_assert_eq(repo_tag(f.r, a.key, "city", true, &f.err), 0);
    cr_assert_eq(repo_tag(f.r, a.key, "night light", true, &f.err), 0);
    cr_assert_eq(repo_trigger(f.r, a.key, "glowing sign", &f.err), 0);
    cr_assert_eq(repo_set(f.r, a.key, REPO_NOTES, "Größe über alles; not for ghibli", &f.err), 0);
    cr_assert_eq(repo_set(f.r, a.key, REPO_CATEGORY, "style", &f.err), 0);
    cr_expect_eq(search(&f, "ghibli"), 2);
    cr_expect_eq(search(&f, "ghib sty"), 1 + 1, "the beginnings of words");
    cr_expect_eq(search(&f, "\"night light\""), 1);
    cr_expect_eq(search(&f, "\"light night\""), 0, "quoted words are found as they stand");
    cr_expect_eq(search(&f, "light night"), 1);
    cr_expect_eq(search(&f, "\"glow sign\""), 0, "quoted words are whole");
    cr_expect_eq(search(&f, "grosse"), 0);
    cr_expect_eq(search(&f, "große uber"), 1, "accents do not matter");
    cr_expect_eq(search(&f, "größe uber"), 1);
    cr_expect_eq(search(&f, "OR AND NEAR( \" * ^ name:"), 0, "%s", f.err.msg);
    cr_expect_eq(search(&f, "()"), ERR_ARG);
    cr_expect_eq(list(&f, (struct repo_filter){0}, "ghibli_style"), 3);
    cr_expect_eq(list(&f, (struct repo_filter){.tag = "city"}, "neon"), 1);
    cr_expect_eq(list(&f, (struct repo_filter){.base = "sd2"}, "paper_cut"), 1);
    cr_expect_eq(list(&f, (struct repo_filter){.kind = "lora", .sort = "rank"}, "paper_cut"), 3);
    cr_expect_eq(list(&f, (struct repo_filter){.kind = "lor"}, NULL), 0);
    cr_expect_eq(list(&f, (struct repo_filter){.category = "style"}, "neon"), 1);
    cr_expect_eq(list(&f, (struct repo_filter){.limit = 2}, NULL), 2);
    cr_expect_eq(repo_list(f.r, &(struct repo_filter){.sort = "colour"}, on_row, NULL, &f.err),
                 ERR_ARG);
    struct repo_model m = {(char[]){"tiny"}, (char[]){"/tiny"}, (char[]){"00"}, 16, 0};
    cr_assert_eq(repo_model_add(f.r, &m, &f.err), 0);
    cr_expect_eq(list(&f, (struct repo_filter){.model = "tiny"}, "neon"), 1);
    cr_expect_eq(list(&f, (struct repo_filter){.base = "tiny"}, "neon"), 1);
    cr_expect_eq(repo_name_base(f.r, &a, &f.err), 0);
    cr_expect_str_eq(a.base, "tiny");
    cr_expect_eq(repo_tag(f.r, a.key, "city", false, &f.err), 0);
    cr_expect_eq(search(&f, "city"), 0, "a tag that is gone is still found");
    cr_assert_eq(repo_remove(f.r, a.key, &f.err), 0);
    cr_expect_eq(search(&f, "glowing"), 0, "an adapter that is gone is still found");
    repo_adapter_release(&a);
    fixture_close(&f);
}

#define MANY "5200"

/* Rows as they would be after an add, without files: all have the word "common", three at other places. */
static void many_rows(struct fixture *f)
{
    static const char sql[] =
        "CREATE TEMP TABLE n AS WITH RECURSIVE c (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c "
        "WHERE i < " MANY ") SELECT i, CASE i WHEN 7 THEN 'common_7' ELSE 'row_' || i END AS name "
        "FROM c;"
        "INSERT INTO adapter (key, id, name, path, bytes, mtime, file_sha256, data_sha256, kinds, "
        "base, sites, tensors, dtype, added) SELECT i, i, name, name, 1, 1, '', '', 'lora', 'sd1', "
        "1, 2, 'F16', i FROM n;"
        "INSERT INTO words (rowid, name, triggers, notes, other) SELECT i, name, "
        "CASE i WHEN 9 THEN 'common rare' END, CASE i WHEN 11 THEN 'rare' END, 'common' FROM n;";
    sqlite3 *db = NULL;
    cr_assert_eq(sqlite3_open(at(f, "home/weft.db"), &db), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK, "%s", sqlite3_errmsg(db));
    sqlite3_close(db);
}

/* Names of hits, until there are three. */
struct three {
    char name[3][40];
    double score[3];
    int n;
};

static int on_three(void *user, const struct repo_adapter *a, double score, const char *why)
{
    struct three *t = user;
    cr_expect(strchr(why, '['), "%s", why);
    snprintf(t->name[t->n], sizeof t->name[0], "%s", a->name);
    t->score[t->n++] = score;
    return t->n == 3;
}

Test(repo, a_word_of_very_many_is_ordered_by_place_then_newest)
{
    struct fixture f;
    struct three t = {.n = 0};
    fixture_open(&f);
    many_rows(&f);
    cr_expect_eq(search(&f, "common"), atoi(MANY), "each is found once");
    cr_expect_eq(search(&f, "commo row"), atoi(MANY) - 1, "but common_7");
    cr_expect_eq(search(&f, "common rare"), 2);
    cr_expect_eq(search(&f, "common nowhere"), 0);
    cr_assert_eq(repo_search(f.r, "common", 3, on_three, &t, &f.err), 0, "%s", f.err.msg);
    cr_expect_eq(t.n, 3);
    cr_expect_str_eq(t.name[0], "common_7");
    cr_expect_str_eq(t.name[1], "row_9");
    cr_expect_str_eq(t.name[2], "row_" MANY);
    cr_expect(t.score[0] > t.score[1] && t.score[1] > t.score[2]);
    t.n = 0;
    cr_assert_eq(repo_search(f.r, "rare", 0, on_three, &t, &f.err), 0, "%s", f.err.msg);
    cr_expect_eq(t.n, 2);
    cr_expect_str_eq(t.name[0], "row_9", "few are ranked, a trigger over a note");
    fixture_close(&f);
}
