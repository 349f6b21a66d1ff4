/* Files of jobs: what each line of the three kinds becomes, and why one becomes nothing. */
#include "cli/jobs_csv.c"
#include "cli/jobs_read.c"
#include "cli/jobs_text.c"

#include <criterion/criterion.h>
#include <sys/stat.h>
#include <unistd.h>

/* What was said of bad lines: "3: why\n4: why\n". */
struct told {
    char text[4096];
    int n;
};

static void listen(void *user, int line, const char *why)
{
    struct told *t = user;
    size_t n = strlen(t->text);
    snprintf(t->text + n, sizeof t->text - n, "%d: %s\n", line, why);
    t->n++;
}

/* A file of the test's own; s.path names it until the next. */
struct scratch {
    char dir[64], path[96];
};

static void scratch_open(struct scratch *s)
{
    strcpy(s->dir, "/tmp/weft-jobs-XXXXXX");
    cr_assert(mkdtemp(s->dir));
    *s->path = 0;
}

static void scratch_put(struct scratch *s, const char *name, const char *text, size_t n)
{
    struct err err;
    if (*s->path)
        unlink(s->path);
    snprintf(s->path, sizeof s->path, "%s/%s", s->dir, name);
    cr_assert_eq(file_replace(s->path, text, n, &err), 0, "%s", err.msg);
}

static void scratch_close(struct scratch *s)
{
    unlink(s->path);
    rmdir(s->dir);
}

/* "1 ID {"prompt":"a"}", a job a line; "-" where there is no id. A new string. */
static char *shown(const struct jobs *j)
{
    char *out = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&out, &size);
    cr_assert(f);
    for (int i = 0; i < j->n; i++) {
        char *options = json_dumps(j->at[i].options, JSON_COMPACT);
        fprintf(f, "%d %s %s\n", j->at[i].line, j->at[i].id ? j->at[i].id : "-", options);
        free(options);
    }
    fclose(f);
    return out;
}

/* Whether each line of want, "3: words", is the beginning and somewhere in the same line of got. */
static bool told_that(const char *got, const char *want)
{
    while (*want && *got) {
        size_t g = strcspn(got, "\n"), w = strcspn(want, "\n"), at = strcspn(want, ":") + 2;
        const char *words = memmem(got, g, want + at, w - at);
        if (strncmp(got, want, at) || !words)
            return false;
        got += g + (got[g] == '\n');
        want += w + (want[w] == '\n');
    }
    return !*want && !*got;
}

struct row {
    const char *text, *jobs, *bad;
};

static void check_rows(const char *name, const struct row *row, size_t n)
{
    struct scratch s;
    scratch_open(&s);
    for (size_t i = 0; i < n; i++) {
        struct jobs j = {0};
        struct told t = {0};
        struct err err = {0};
        scratch_put(&s, name, row[i].text, strlen(row[i].text));
        int rc = jobs_read(&j, s.path, NULL, listen, &t, &err);
        char *got = shown(&j);
        cr_expect_eq(rc, 0, "%s: %s", row[i].text, err.msg);
        cr_expect_str_eq(got, row[i].jobs, "%s: got\n%s", row[i].text, got);
        cr_expect(told_that(t.text, row[i].bad ? row[i].bad : ""), "%s: told\n%s", row[i].text,
                  t.text);
        free(got);
        jobs_release(&j);
        cr_expect(!j.at && !j.n && !j.room);
    }
    scratch_close(&s);
}

#define CHECK(name, rows) check_rows(name, rows, sizeof(rows) / sizeof *(rows))

/* ---- JSON ------------------------------------------------------------------------------------ */

Test(jobs_read, json_lines)
{
    static const struct row rows[] = {
        {"", "", NULL},
        {"{\"prompt\":\"a\"}", "1 - {\"prompt\":\"a\"}\n", NULL},
        {"\xef\xbb\xbf{\"prompt\":\"a\"}\r\n\r\n \t\n{\"prompt\":\"\"}\r\n",
         "1 - {\"prompt\":\"a\"}\n4 - {\"prompt\":\"\"}\n", NULL},
        {"{\"prompt\":\"a\"}\n{\"prompt\" \"b\"}\n{\"prompt\":\"c\"}\n",
         "1 - {\"prompt\":\"a\"}\n3 - {\"prompt\":\"c\"}\n", "2: column 13: ':' expected"},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}\n", "", "1: duplicate object key"},
        {"{\"prompt\":\"a\"} x\n", "", "1: column 16: end of file expected"},
        {"{\"prompt\":\"a\n", "", "1: column 12: premature end"},
        {"{\"prompt\":\"\xff\"}\n", "", "1: unable to decode byte 0xff"},
        {"{\"prompt\":\"\\u0000\"}\n", "", "1: \\u0000 is not allowed"},
        {"{\"prompt\":\"a\",\"cfg\":99999999999999999999}\n", "", "1: too big integer"},
        {"[{\"prompt\":\"a\"}]\n7\nnull\n# x\n// x\n", "",
         "1: not an object\n2: not an object\n3: not an object\n4: column 1: \n5: column 1: "},
        {"{\"prompt\":\"a\",\"cfg\":5,\"denoise\":0.5,\"fold\":true,\"yes\":false,\"init\":null,"
         "\"adapter\":[\"x:0.5\",7,1.5],\"size\":[512,768]}",
         "1 - "
         "{\"prompt\":\"a\",\"cfg\":5,\"denoise\":0.5,\"fold\":true,\"yes\":false,\"init\":null,"
         "\"adapter\":[\"x:0.5\",7,1.5],\"size\":[512,768]}\n",
         NULL},
        {"{}\n{\"seed\":1}\n{\"prompt\":null}\n{\"like\":\"a.png\"}\n{\"like\":false}\n",
         "4 - {\"like\":\"a.png\"}\n",
         "1: no prompt; an empty one is written \"\"\n2: no prompt\n3: no prompt\n5: no prompt"},
    };
    CHECK("a.jsonl", rows);
}

Test(jobs_read, json_names)
{
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"negative_prompt\":\"b\",\"cfg_scale\":5,\"clip_skip\":2,"
         "\"allow_partial\":true,\"adapters\":[\"x\"],\"width\":512,\"height\":\"768\"}",
         "1 - "
         "{\"prompt\":\"a\",\"negative\":\"b\",\"cfg\":5,\"clip-skip\":2,\"allow-partial\":true,"
         "\"adapter\":[\"x\"],\"size\":\"512x768\"}\n",
         NULL},
        {"{\"prompt\":\"a\",\"Cfg\":5}\n{\"prompt\":\"a\",\"\":5}\n{\"prompt\":\"a\",\"-x\":5}\n"
         "{\"prompt\":\"a\",\"x=y\":5}\n{\"prompt\":\"a\",\"sampler_name\":\"b\"}\n"
         "{\"prompt\":\"a\",\"4\":5}\n{\"prompt\":\"a\",\"a-4\":5}\n{\"prompt\":\"a\",\"\u00e4\":5}"
         "\n",
         "7 - {\"prompt\":\"a\",\"a-4\":5}\n",
         "1: 'Cfg' cannot be the name\n2: '' cannot be\n3: '-x' cannot be\n4: 'x=y' cannot be\n"
         "5: 'sampler_name' cannot be\n6: '4' cannot be\n8: '\u00e4' cannot be"},
        {"{\"prompt\":\"a\",\"cfg\":5,\"cfg_scale\":5}\n", "",
         "1: 'cfg_scale': cfg is given twice"},
        {"{\"prompt\":\"a\",\"width\":512}\n{\"prompt\":\"a\",\"width\":null,\"height\":5}\n"
         "{\"prompt\":\"a\",\"width\":0,\"height\":5}\n{\"prompt\":\"a\",\"width\":1.5,\"height\":"
         "5}\n"
         "{\"prompt\":\"a\",\"width\":8,\"height\":5,\"size\":8}\n"
         "{\"prompt\":\"a\",\"width\":8.0,\"height\":5,\"size\":null}\n"
         "{\"prompt\":\"a\",\"width\":null,\"height\":null}\n",
         "6 - {\"prompt\":\"a\",\"size\":\"8x5\"}\n7 - {\"prompt\":\"a\"}\n",
         "1: go together\n2: go together\n3: whole numbers\n4: whole numbers\n5: 'size' says"},
        {"{\"prompt\":\"a\",\"adapter\":{\"x\":1}}\n{\"prompt\":\"a\",\"adapter\":[true]}\n"
         "{\"prompt\":\"a\",\"adapter\":[null]}\n{\"prompt\":\"a\",\"adapter\":[[\"x\"]]}\n"
         "{\"prompt\":\"a\",\"adapter\":[{}]}\n{\"prompt\":\"a\",\"adapter\":[]}\n",
         "6 - {\"prompt\":\"a\",\"adapter\":[]}\n",
         "1: 'adapter': an object\n2: 'adapter': only\n3: 'adapter': only\n4: 'adapter': only\n"
         "5: 'adapter': only"},
        {"{\"prompt\":[\"a\",\"b\"]}\n{\"prompt\":7}\n{\"prompt\":false}\n", "",
         "1: 'prompt' is one text\n2: 'prompt' is one text\n3: 'prompt' is one text"},
        {"{\"prompt\":\"a\",\"size\":[512]}\n{\"prompt\":\"a\",\"size\":[1,2,3]}\n"
         "{\"prompt\":\"a\",\"size\":[\"x\",2]}\n{\"prompt\":\"a\",\"size\":[\"8\",9.0]}\n",
         "4 - {\"prompt\":\"a\",\"size\":[\"8\",9.0]}\n",
         "1: [width, height]\n2: [width, height]\n3: [width, height]"},
    };
    CHECK("a.ndjson", rows);
}

Test(jobs_read, ids)
{
    char text[300], jobs[300], a[202];
    struct row row = {text, jobs, NULL};
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"id\":\"k 1\"}\n{\"prompt\":\"a\",\"id\":12}\n"
         "{\"prompt\":\"a\",\"id\":null}\n",
         "1 k 1 {\"prompt\":\"a\"}\n2 12 {\"prompt\":\"a\"}\n3 - {\"prompt\":\"a\"}\n", NULL},
        {"{\"prompt\":\"a\",\"id\":\"\"}\n{\"prompt\":\"a\",\"id\":\"a/b\"}\n"
         "{\"prompt\":\"a\",\"id\":\"a\\nb\"}\n{\"prompt\":\"a\",\"id\":\"\\u007f\"}\n"
         "{\"prompt\":\"a\",\"id\":1.5}\n{\"prompt\":\"a\",\"id\":true}\n"
         "{\"prompt\":\"a\",\"id\":[\"a\"]}\n",
         "",
         "1: 'id' is a text\n2: no '/'\n3: no '/' and no control\n4: no control\n5: 'id' is\n"
         "6: 'id' is\n7: 'id' is"},
        {"{\"prompt\":\"a\",\"id\":\"k\",\"repeat\":2}\n{\"prompt\":\"a\",\"id\":\"k\",\"repeat\":"
         "1}\n",
         "1 k-1 {\"prompt\":\"a\"}\n1 k-2 {\"prompt\":\"a\"}\n2 k {\"prompt\":\"a\"}\n", NULL},
    };
    CHECK("a.JSON", rows);
    memset(a, 'a', sizeof a);
    a[200] = 0;
    snprintf(text, sizeof text, "{\"prompt\":\"\",\"id\":\"%s\"}", a);
    snprintf(jobs, sizeof jobs, "1 %s {\"prompt\":\"\"}\n", a);
    check_rows("a.json", &row, 1);
    strcpy(a + 200, "a");
    snprintf(text, sizeof text, "{\"prompt\":\"\",\"id\":\"%s\"}", a);
    *jobs = 0;
    row.bad = "1: more than 200 bytes";
    check_rows("a.json", &row, 1);
}

Test(jobs_read, repeats_and_seeds)
{
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"repeat\":2}\n{\"prompt\":\"a\",\"repeat\":null}\n"
         "{\"prompt\":\"a\",\"repeat\":\"1\"}\n",
         "1 - {\"prompt\":\"a\"}\n1 - {\"prompt\":\"a\"}\n2 - {\"prompt\":\"a\"}\n"
         "3 - {\"prompt\":\"a\"}\n",
         NULL},
        {"{\"prompt\":\"a\",\"repeat\":0}\n{\"prompt\":\"a\",\"repeat\":1000001}\n"
         "{\"prompt\":\"a\",\"repeat\":1.5}\n{\"prompt\":\"a\",\"repeat\":[1]}\n"
         "{\"prompt\":\"a\",\"repeat\":true}\n{\"prompt\":\"a\",\"repeat\":-1}\n",
         "",
         "1: 'repeat' is\n2: from 1 to 1000000\n3: 'repeat' is\n4: 'repeat' is\n5: 'repeat' is\n"
         "6: 'repeat' is"},
        {"{\"seed\":7,\"prompt\":\"a\",\"repeat\":3}\n",
         "1 - {\"seed\":7,\"prompt\":\"a\"}\n1 - {\"seed\":8,\"prompt\":\"a\"}\n"
         "1 - {\"seed\":9,\"prompt\":\"a\"}\n",
         NULL},
        {"{\"prompt\":\"a\",\"seed\":\"7\",\"repeat\":2}\n{\"prompt\":\"a\",\"seed\":7.0}\n"
         "{\"prompt\":\"a\",\"seed\":null,\"repeat\":2}\n{\"prompt\":\"a\",\"seed\":false}\n",
         "1 - {\"prompt\":\"a\",\"seed\":7}\n1 - {\"prompt\":\"a\",\"seed\":8}\n"
         "2 - {\"prompt\":\"a\",\"seed\":7}\n3 - {\"prompt\":\"a\",\"seed\":null}\n"
         "3 - {\"prompt\":\"a\",\"seed\":null}\n4 - {\"prompt\":\"a\",\"seed\":false}\n",
         NULL},
        {"{\"prompt\":\"a\",\"seed\":9223372036854775806,\"repeat\":2}\n"
         "{\"prompt\":\"a\",\"seed\":9223372036854775806,\"repeat\":3}\n",
         "1 - {\"prompt\":\"a\",\"seed\":9223372036854775806}\n"
         "1 - {\"prompt\":\"a\",\"seed\":9223372036854775807}\n",
         "2: the last seed is above"},
        {"{\"prompt\":\"a\",\"seed\":-1}\n{\"prompt\":\"a\",\"seed\":1.5}\n"
         "{\"prompt\":\"a\",\"seed\":\"x\"}\n{\"prompt\":\"a\",\"seed\":\"1x\"}\n"
         "{\"prompt\":\"a\",\"seed\":\"9223372036854775808\"}\n{\"prompt\":\"a\",\"seed\":[1,2]}\n"
         "{\"prompt\":\"a\",\"seed\":true}\n{\"prompt\":\"a\",\"seed\":\"\"}\n",
         "",
         "1: 'seed' is\n2: 'seed' is\n3: 'seed' is\n4: 'seed' is\n5: 'seed' is\n6: 'seed' is\n"
         "7: 'seed' is\n8: 'seed' is"},
    };
    CHECK("a.jsonl", rows);
}

Test(jobs_read, grids)
{
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"id\":\"k\",\"grid\":{\"cfg\":[3,5],\"adapter\":[null,\"x\",[\"x\","
         "\"y\"]]}}",
         "1 k-1 {\"prompt\":\"a\",\"cfg\":3,\"adapter\":null}\n"
         "1 k-2 {\"prompt\":\"a\",\"cfg\":3,\"adapter\":\"x\"}\n"
         "1 k-3 {\"prompt\":\"a\",\"cfg\":3,\"adapter\":[\"x\",\"y\"]}\n"
         "1 k-4 {\"prompt\":\"a\",\"cfg\":5,\"adapter\":null}\n"
         "1 k-5 {\"prompt\":\"a\",\"cfg\":5,\"adapter\":\"x\"}\n"
         "1 k-6 {\"prompt\":\"a\",\"cfg\":5,\"adapter\":[\"x\",\"y\"]}\n",
         NULL},
        {"{\"repeat\":2,\"grid\":{\"prompt\":[\"a\",\"b\"],\"seed\":[5,\"1\"]}}",
         "1 - {\"prompt\":\"a\",\"seed\":5}\n1 - {\"prompt\":\"a\",\"seed\":6}\n"
         "1 - {\"prompt\":\"a\",\"seed\":1}\n1 - {\"prompt\":\"a\",\"seed\":2}\n"
         "1 - {\"prompt\":\"b\",\"seed\":5}\n1 - {\"prompt\":\"b\",\"seed\":6}\n"
         "1 - {\"prompt\":\"b\",\"seed\":1}\n1 - {\"prompt\":\"b\",\"seed\":2}\n",
         NULL},
        {"{\"prompt\":\"a\",\"width\":8,\"grid\":{\"height\":[16,24],\"cfg_scale\":[2]}}",
         "1 - {\"prompt\":\"a\",\"cfg\":2,\"size\":\"8x16\"}\n"
         "1 - {\"prompt\":\"a\",\"cfg\":2,\"size\":\"8x24\"}\n",
         NULL},
        {"{\"prompt\":\"a\",\"grid\":{\"size\":[512,\"8x16\",[8,24]]}}",
         "1 - {\"prompt\":\"a\",\"size\":512}\n1 - {\"prompt\":\"a\",\"size\":\"8x16\"}\n"
         "1 - {\"prompt\":\"a\",\"size\":[8,24]}\n",
         NULL},
        {"{\"prompt\":\"a\",\"grid\":{}}\n{\"prompt\":\"a\",\"grid\":null}\n",
         "1 - {\"prompt\":\"a\"}\n2 - {\"prompt\":\"a\"}\n", NULL},
        {"{\"prompt\":\"a\",\"cfg\":5,\"grid\":{\"cfg\":[3]}}\n"
         "{\"prompt\":\"a\",\"grid\":{\"cfg\":[3]},\"cfg_scale\":5}\n"
         "{\"prompt\":\"a\",\"grid\":{\"cfg\":[3],\"cfg_scale\":[3]}}\n",
         "",
         "1: 'cfg': cfg is given twice\n2: 'cfg_scale': cfg is given twice\n"
         "3: 'cfg_scale': cfg is given twice"},
        {"{\"prompt\":\"a\",\"grid\":[1]}\n{\"prompt\":\"a\",\"grid\":{\"cfg\":[]}}\n"
         "{\"prompt\":\"a\",\"grid\":{\"cfg\":3}}\n{\"prompt\":\"a\",\"grid\":{\"repeat\":[3]}}\n"
         "{\"prompt\":\"a\",\"grid\":{\"id\":[3]}}\n{\"prompt\":\"a\",\"grid\":{\"grid\":[3]}}\n"
         "{\"prompt\":\"a\",\"grid\":{\"X\":[3]}}\n{\"prompt\":\"a\",\"grid\":{\"cfg\":[3,{}]}}\n"
         "{\"prompt\":\"a\",\"grid\":{\"adapter\":[[[]]]}}\n{\"grid\":{\"prompt\":[\"a\",null]}}\n"
         "{\"prompt\":\"a\",\"grid\":{\"seed\":[1,-1]}}\n",
         "",
         "1: 'grid' is an object\n2: 'cfg' is a list of\n3: 'cfg' is a list of\n4: 'repeat' can "
         "only\n"
         "5: 'id' can only\n6: 'grid' can only\n7: 'X' cannot\n8: 'cfg': an object\n"
         "9: 'adapter': only\n10: no prompt\n11: 'seed' is"},
    };
    CHECK("a.jsonl", rows);
}

/* A line whose grid has two lists of a and b numbers. */
static char *grid_line(int a, int b, int repeat)
{
    char *out = NULL;
    size_t size;
    FILE *f = open_memstream(&out, &size);
    cr_assert(f);
    fprintf(f, "{\"prompt\":\"a\",\"repeat\":%d,\"grid\":{\"cfg\":[0", repeat);
    for (int i = 1; i < a; i++)
        fprintf(f, ",%d", i);
    fputs("],\"eta\":[0", f);
    for (int i = 1; i < b; i++)
        fprintf(f, ",%d", i);
    fputs("]}}\n", f);
    fclose(f);
    return out;
}

Test(jobs_read, how_many)
{
    static const struct {
        int a, b, repeat, n;
        const char *bad;
    } table[] = {{100, 100, 10, 100000, ""},
                 {1000, 1001, 1, 0, "1: more than 1000000 pictures of one line"},
                 {1000, 1000, 2, 0, "1: 2000000 pictures of one line, more than 1000000"},
                 {2, 1, 1000000, 0, "1: 2000000 pictures of one line"}};
    struct scratch s;
    struct err err;
    scratch_open(&s);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct jobs j = {0};
        struct told t = {0};
        char *line = grid_line(table[i].a, table[i].b, table[i].repeat);
        scratch_put(&s, "a.jsonl", line, strlen(line));
        cr_expect_eq(jobs_read(&j, s.path, NULL, listen, &t, &err), 0, "%s", err.msg);
        cr_expect_eq(j.n, table[i].n);
        cr_expect(told_that(t.text, table[i].bad), "%s", t.text);
        jobs_release(&j);
        free(line);
    }
    scratch_close(&s);
}

/* As if so many were there already. */
Test(jobs_read, how_many_in_a_file)
{
    struct jobs j = {0};
    struct told t = {0};
    struct err err;
    struct jobs_reading r = {
        .jobs = &j, .first = 1 - JOBS_MOST, .name = "x", .bad = listen, .user = &t};
    char text[] = "{\"prompt\":\"a\",\"repeat\":2}\n{\"prompt\":\"b\"}\n{\"prompt\":\"c\"}";
    cr_assert_eq(read_text(&r, &forms[0], text, strlen(text), &err), 0);
    cr_expect_eq(j.n, 1);
    cr_expect(told_that(t.text, "1: the file has more than 10000000\n3: the file has"), "%s",
              t.text);
    jobs_release(&j);
}

/* ---- CSV ------------------------------------------------------------------------------------- */

Test(jobs_read, csv)
{
    static const struct row rows[] = {
        {"", "", NULL},
        {"\r\n \n", "", NULL},
        {"prompt\n", "", NULL},
        {"\xef\xbb\xbfid,prompt,adapter,adapters,seed\r\nk,a red kite,x:0.5,,7\r\n\r\n"
         ",\"a, \"\"b\"\"\nc\",,,\r\nm,\"\",,\"y\",\" 8\"",
         "2 k {\"prompt\":\"a red kite\",\"adapter\":\"x:0.5\",\"seed\":7}\n"
         "4 - {\"prompt\":\"a, \\\"b\\\"\\nc\"}\n6 m "
         "{\"prompt\":\"\",\"adapter\":\"y\",\"seed\":8}\n",
         NULL},
        {"prompt,adapter,adapter,adapter\na,x,y,z\na,,y,\na,x,,z\n",
         "2 - {\"prompt\":\"a\",\"adapter\":[\"x\",\"y\",\"z\"]}\n"
         "3 - {\"prompt\":\"a\",\"adapter\":\"y\"}\n"
         "4 - {\"prompt\":\"a\",\"adapter\":[\"x\",\"z\"]}\n",
         NULL},
        {"\"prompt\", cfg_scale ,negative_prompt,width,height\ntrue,5.5,false,512,768\n",
         "2 - {\"prompt\":\"true\",\"cfg\":\"5.5\",\"negative\":\"false\",\"size\":\"512x768\"}\n",
         NULL},
        {"prompt,fold,triggers,allow_partial,allow-partial,yes,auto\na,true,FALSE,True,,maybe,"
         "true\n"
         "a,,,,false,false,\n",
         "2 - {\"prompt\":\"a\",\"fold\":true,\"triggers\":false,\"allow-partial\":true,"
         "\"yes\":\"maybe\",\"auto\":\"true\"}\n"
         "3 - {\"prompt\":\"a\",\"allow-partial\":false,\"yes\":false}\n",
         NULL},
        {"prompt,repeat,seed,id\na,2,5,k\na,0,,\na,x,,\na,,x,\na,2,9223372036854775807,\na,,,a/b\n",
         "2 k-1 {\"prompt\":\"a\",\"seed\":5}\n2 k-2 {\"prompt\":\"a\",\"seed\":6}\n",
         "3: 'repeat' is\n4: 'repeat' is\n5: 'seed' is\n6: the last seed\n7: no '/'"},
        {"prompt,cfg\na\na,1,2\n,5\na,1\n", "5 - {\"prompt\":\"a\",\"cfg\":\"1\"}\n",
         "2: 1 cells, where the first line names 2\n3: 3 cells\n4: no prompt"},
        {"prompt,cfg\n\"a\"b,1\na\"b,1\n\"a\" ,1\nc,1\n", "5 - {\"prompt\":\"c\",\"cfg\":\"1\"}\n",
         "2: text behind a closing quote\n3: a quote in a cell\n4: text behind"},
        {"prompt,cfg\n\"a\nb\nc\"x,1\nd,2\n", "5 - {\"prompt\":\"d\",\"cfg\":\"2\"}\n",
         "2: text behind"},
        {"prompt,cfg\na,1\n\"b,2\nc,3\n", "2 - {\"prompt\":\"a\",\"cfg\":\"1\"}\n",
         "3: a quote is not closed"},
        {"prompt,cfg\n\"b\",\"", "", "2: a quote is not closed"},
        {"prompt,cfg\n\"b\",\"\"", "2 - {\"prompt\":\"b\",\"cfg\":\"\"}\n", NULL},
        {"prompt,cfg\nb,", "2 - {\"prompt\":\"b\"}\n", NULL},
        {"prompt,cfg,cfg_scale\na,1,\na,1,2\na,,2\n",
         "2 - {\"prompt\":\"a\",\"cfg\":\"1\"}\n4 - {\"prompt\":\"a\",\"cfg\":\"2\"}\n",
         "3: 'cfg_scale': cfg is given twice"},
        {"prompt,prompt,seed,seed\na,b,,\na,,1,2\na,,,1\n", "4 - {\"prompt\":\"a\",\"seed\":1}\n",
         "2: 'prompt' is one text\n3: 'seed' is"},
        {"prompt,size,size\na,8,16\na,512,\n",
         "2 - {\"prompt\":\"a\",\"size\":[\"8\",\"16\"]}\n3 - "
         "{\"prompt\":\"a\",\"size\":\"512\"}\n",
         NULL},
        {"prompt\n\xff\xfe\nb\n", "3 - {\"prompt\":\"b\"}\n",
         "2: prompt: the text is not UTF-8 at byte 0"},
        {"prompt\na\rb\n", "2 - {\"prompt\":\"a\\rb\"}\n", NULL},
    };
    CHECK("a.csv", rows);
}

Test(jobs_read, csv_without_columns)
{
    static const struct {
        const char *text, *why;
    } table[] = {
        {"prompt,Steps\na,1\n", "line 1: 'Steps' cannot be the name of an option"},
        {"\nprompt;steps\n", "line 2: 'prompt;steps' cannot be"},
        {"prompt,,cfg\n", "line 1: column 2 has no name"},
        {"prompt,grid\n", "line 1: 'grid' cannot be a column"},
        {"\"prompt\n", "line 1: a quote is not closed"},
        {"prompt,\xff\n", "line 1: the names of the columns: the text is not UTF-8"},
    };
    struct scratch s;
    scratch_open(&s);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct jobs j = {0};
        struct told t = {0};
        struct err err = {0};
        scratch_put(&s, "a.csv", table[i].text, strlen(table[i].text));
        int rc = jobs_read(&j, s.path, NULL, listen, &t, &err);
        cr_expect(rc == err.code && rc < 0 && !t.n && !j.n, "%s", table[i].text);
        cr_expect(!strncmp(err.msg, s.path, strlen(s.path)) && strstr(err.msg, table[i].why), "%s",
                  err.msg);
        jobs_release(&j);
    }
    scratch_close(&s);
}

/* ---- text ------------------------------------------------------------------------------------ */

Test(jobs_read, text)
{
    static const struct row rows[] = {
        {"\xef\xbb\xbf a red kite \r\n\n\t\nit's \"two\" \\ lines\n",
         "1 - {\"prompt\":\"a red kite\"}\n4 - {\"prompt\":\"it's \\\"two\\\" \\\\ lines\"}\n",
         NULL},
        {"a -- b --steps 20\n-- b\n--\na --promt b\nthe '70s --style\n",
         "1 - {\"prompt\":\"a -- b --steps 20\"}\n2 - {\"prompt\":\"-- b\"}\n"
         "3 - {\"prompt\":\"--\"}\n4 - {\"prompt\":\"a --promt b\"}\n"
         "5 - {\"prompt\":\"the '70s --style\"}\n",
         NULL},
        {"--promt a --steps 20\n --promt\n--promt don't\n--Prompt a\n--promptx a\n--5 kites\n"
         "--promt=a\n--- b\n--'\n",
         "",
         "1: '--promt' is not\n2: '--promt' is not\n3: '--promt' is not\n4: '--Prompt' is not\n"
         "5: '--promptx' is not\n6: '--5' is not\n7: '--promt=a' is not\n8: '---' is not\n"
         "9: a quote"},
        {"--prompt \"a \\\"red\\\" kite\" --negative_prompt 'b \\' --steps 20 --cfg_scale 5.5 "
         "--width 512 --height 768 --seed 7 --sampler_name \"Euler a\" --sd_model x.safetensors\n",
         "1 - {\"prompt\":\"a \\\"red\\\" kite\",\"negative\":\"b \\\\\",\"steps\":\"20\","
         "\"cfg\":\"5.5\",\"seed\":7,\"sampler\":\"Euler a\",\"model\":\"x.safetensors\","
         "\"size\":\"512x768\"}\n",
         NULL},
        {"--prompt a\\ red  \"kite and\"  it --steps 9 --negative_prompt b c\n",
         "1 - {\"prompt\":\"a red kite and it\",\"steps\":\"9\",\"negative\":\"b c\"}\n", NULL},
        {"--prompt \"\"\n--prompt '' b\n--prompt --steps\n--prompt a\\\n--prompt \"a\\b\"\n",
         "1 - {\"prompt\":\"\"}\n2 - {\"prompt\":\" b\"}\n3 - {\"prompt\":\"--steps\"}\n"
         "4 - {\"prompt\":\"a\\\\\"}\n5 - {\"prompt\":\"a\\\\b\"}\n",
         NULL},
        {"--seed -1 --prompt a\n--seed 3 --prompt a --seed -1\n--seed -2 --prompt a\n"
         "--seed x --prompt a\n",
         "1 - {\"prompt\":\"a\"}\n2 - {\"prompt\":\"a\"}\n", "3: 'seed' is\n4: 'seed' is"},
        {"--prompt a --n_iter 2 --batch_size 2 --seed 5\n--prompt b --n_iter 2\n",
         "1 - {\"prompt\":\"a\",\"seed\":5}\n1 - {\"prompt\":\"a\",\"seed\":6}\n"
         "1 - {\"prompt\":\"a\",\"seed\":7}\n1 - {\"prompt\":\"a\",\"seed\":8}\n"
         "2 - {\"prompt\":\"b\"}\n2 - {\"prompt\":\"b\"}\n",
         NULL},
        {"--prompt a --n_iter 0\n--prompt a --batch_size x\n"
         "--prompt a --batch_size 1001 --n_iter 1000\n",
         "", "1: '--n_iter' is\n2: '--batch_size' is\n3: is more than 1000000"},
        {"--outpath_samples o --outpath_grids o --prompt_for_display b --do_not_save_samples true "
         "--do_not_save_grid true --prompt a\n",
         "1 - {\"prompt\":\"a\"}\n", NULL},
        {"--prompt a --styles b\n--subseed 1 --prompt a\n--tiling true --prompt a\n"
         "--restore_faces true --prompt a\n--sampler_index 1 --prompt a\n--prompt a --foo 1\n"
         "--seed_resize_from_w 1 --prompt a\n--subseed_strength 1 --prompt a\n--prompt=a\n",
         "",
         "1: '--styles' is not\n2: '--subseed' is not\n3: '--tiling'\n4: '--restore_faces'\n"
         "5: '--sampler_index' is not an option here; --sampler_name is\n6: '--foo'\n"
         "7: '--seed_resize_from_w'\n8: '--subseed_strength'\n9: '--prompt=a'"},
        {"--prompt a --steps\n--prompt\n--steps 5 6 --prompt a\n--prompt don't\n--prompt \"a\n"
         "--steps 5\n--width 5 --prompt a\n--steps 'a --prompt b\n",
         "",
         "1: '--steps' needs a value\n2: '--prompt' needs a value\n3: '6' stands where\n"
         "4: a quote is not closed\n5: a quote is not closed\n6: no prompt\n7: go together\n"
         "8: a quote is not closed"},
        {"a\nb\xff\n", "1 - {\"prompt\":\"a\"}\n", "2: the line: the text is not UTF-8 at byte 1"},
        {"{\"prompt\":\"a\"}\n", "1 - {\"prompt\":\"{\\\"prompt\\\":\\\"a\\\"}\"}\n", NULL},
    };
    CHECK("a.txt", rows);
}

/* ---- files ----------------------------------------------------------------------------------- */

Test(jobs_read, which_format)
{
    static const char json[] = "{\"prompt\":\"a\"}", csv[] = "prompt\na\n", bom[] = "\xef\xbb\xbf";
    static const struct {
        const char *name, *format, *front, *text, *prompt;
    } table[] = {
        {"a.json", NULL, "", json, "a"},      {"a.CSV", NULL, "", csv, "a"},
        {"a.csv", "text", "", csv, "prompt"}, {"a.txt", "jsonl", "", json, "a"},
        {"a.jsonl", "csv", "", csv, "a"},     {"a", NULL, "\n \t", json, "a"},
        {"a.dat", NULL, bom, json, "a"},      {"a.dat", NULL, bom, csv, "prompt"},
        {"a.", NULL, "", csv, "prompt"},
    };
    struct scratch s;
    char text[64];
    scratch_open(&s);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct jobs j = {0};
        struct err err = {0};
        snprintf(text, sizeof text, "%s%s", table[i].front, table[i].text);
        scratch_put(&s, table[i].name, text, strlen(text));
        cr_assert_eq(jobs_read(&j, s.path, table[i].format, NULL, NULL, &err), 0, "%s", err.msg);
        cr_assert_gt(j.n, 0, "%s", table[i].name);
        cr_expect_str_eq(json_string_value(json_object_get(j.at[0].options, "prompt")),
                         table[i].prompt, "%s", table[i].name);
        jobs_release(&j);
    }
    scratch_close(&s);
}

Test(jobs_read, nul_bytes)
{
    static const char text[] = "a\nb\0c\nd";
    static const char *const table[][2] = {{"a.txt", "2: a NUL byte"},
                                           {"a.jsonl", "1: \n2: a NUL byte\n3: "},
                                           {"a.csv", "2: a NUL byte\n3: no prompt"}};
    struct scratch s;
    scratch_open(&s);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct jobs j = {0};
        struct told t = {0};
        struct err err = {0};
        scratch_put(&s, table[i][0], text, sizeof text - 1);
        cr_expect_eq(jobs_read(&j, s.path, NULL, listen, &t, &err), 0, "%s", err.msg);
        cr_expect(told_that(t.text, table[i][1]), "%s: %s", table[i][0], t.text);
        jobs_release(&j);
    }
    scratch_close(&s);
}

Test(jobs_read, several_files_in_one)
{
    struct scratch s;
    struct jobs j = {0};
    struct err err = {0};
    scratch_open(&s);
    scratch_put(&s, "a.txt", "a\nb\n", 4);
    cr_assert_eq(jobs_read(&j, s.path, NULL, NULL, NULL, &err), 0);
    cr_assert_eq(jobs_read(&j, s.path, NULL, NULL, NULL, &err), 0);
    cr_assert_eq(j.n, 4);
    cr_expect_eq(j.at[3].line, 2);
    cr_expect_eq(jobs_read(&j, "/nowhere/a.txt", NULL, NULL, NULL, &err), ERR_IO);
    cr_expect(strstr(err.msg, "/nowhere/a.txt"), "%s", err.msg);
    cr_expect_eq(jobs_read(&j, s.path, "xml", NULL, NULL, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "'xml'") && strstr(err.msg, "jsonl, csv and text"), "%s", err.msg);
    cr_expect_eq(jobs_read(&j, s.dir, NULL, NULL, NULL, &err), ERR_IO, "a folder");
    scratch_put(&s, "big.txt", "", 0);
    cr_assert_eq(truncate(s.path, (off_t)FILE_MOST + 1), 0);
    cr_expect_eq(jobs_read(&j, s.path, NULL, NULL, NULL, &err), ERR_FORMAT);
    cr_expect_eq(j.n, 4);
    jobs_release(&j);
    scratch_close(&s);
}

Test(jobs_read, standard_input)
{
    struct scratch s;
    struct jobs j = {0};
    struct told t = {0};
    struct err err = {0};
    char *text = NULL;
    size_t n = 0;
    scratch_open(&s);
    scratch_put(&s, "in", " {\"prompt\":\"a\"}\n7\n", 18);
    cr_assert(freopen(s.path, "r", stdin));
    cr_assert_eq(jobs_read(&j, "-", NULL, listen, &t, &err), 0, "%s", err.msg);
    cr_expect(j.n == 1 && told_that(t.text, "2: not an object"), "%s", t.text);
    cr_assert(freopen(s.path, "r", stdin));
    cr_assert_eq(jobs_read(&j, "-", "text", NULL, NULL, &err), 0, "%s", err.msg);
    cr_expect_eq(j.n, 3);
    jobs_release(&j);

    FILE *f = fopen(s.path, "r");
    cr_assert(f);
    cr_expect_eq(read_stream(&text, &n, f, 18, &err), 0);
    cr_expect(n == 18 && text[18] == 0);
    free(text);
    rewind(f);
    cr_expect_eq(read_stream(&text, &n, f, 17, &err), ERR_FORMAT);
    cr_expect(!text && strstr(err.msg, "standard input: more than 17 bytes"), "%s", err.msg);
    fclose(f);
    cr_assert(freopen(s.path, "w", stdin)); /* cannot be read */
    cr_expect_eq(jobs_read(&j, "-", NULL, NULL, NULL, &err), ERR_IO);
    cr_expect(strstr(err.msg, "standard input: "), "%s", err.msg);
    jobs_release(&j);

    f = fopen(s.path, "w+"); /* longer than the first buffer */
    cr_assert(f);
    for (int i = 0; i < 50000; i++)
        fprintf(f, "%d\n", i);
    rewind(f);
    cr_expect_eq(read_stream(&text, &n, f, FILE_MOST, &err), 0);
    cr_expect(n == (size_t)ftell(f) && !strcmp(text + n - 12, "49998\n49999\n"));
    free(text);
    fclose(f);
    scratch_close(&s);
}

/* Whatever is in a file, each line of it is jobs or a reason. */
Test(jobs_read, damaged_files)
{
    static const char *const text[] = {
        "{\"prompt\":\"a\",\"id\":\"k\",\"repeat\":2,\"seed\":1,\"grid\":{\"cfg\":[1,2],\"size\":[["
        "8,9]]}}\n"
        "{\"prompt\":\"b\",\"width\":8,\"height\":9}\n",
        "id,prompt,adapter,adapter\nk,\"a \"\"b\"\"\nc\",x,y\r\nm,b,,\n",
        "a\n--prompt \"a \\\"b\\\"\" c --seed 7 --n_iter 2\n--steps 5 --prompt 'x y'\n",
    };
    static const char letters[] = "\"\\,'-\n\r {}[]:09x\xff";
    unsigned s = 1;
    for (int i = 0; i < 30000; i++) {
        struct jobs j = {0};
        struct told t = {0};
        struct err err = {0};
        struct jobs_reading r = {.jobs = &j, .name = "x", .bad = listen, .user = &t};
        size_t n = strlen(text[i % 3]);
        s = s * 1664525u + 1013904223u;
        n -= s >> 30 ? 0 : (s >> 16) % n;
        char *copy = malloc(n + 1); /* no larger, so that a step beyond is seen */
        cr_assert(copy);
        memcpy(copy, text[i % 3], n);
        copy[n] = 0;
        for (unsigned k = 0; k <= i % 4u && n; k++) {
            s = s * 1664525u + 1013904223u;
            copy[(s >> 8) % n] = letters[(s >> 24) % sizeof letters];
        }
        int rc = read_text(&r, &forms[i % 3], copy, n, &err);
        cr_expect(rc == 0 || rc == err.code);
        for (int k = 1; k < j.n; k++)
            cr_expect(j.at[k - 1].line <= j.at[k].line);
        jobs_release(&j);
        free(copy);
    }
}

/* ---- as a command line ----------------------------------------------------------------------- */

Test(jobs_read, arguments)
{
    static const struct {
        const char *job, *line; /* arguments with '|' between */
    } table[] = {
        {"{\"prompt\":\"a red kite\"}", "batch|--|a red kite"},
        {"{\"prompt\":\"\"}", "batch|--|"},
        {"{\"prompt\":\"--x\",\"seed\":9223372036854775807}",
         "batch|--seed=9223372036854775807|--|--x"},
        {"{\"like\":\"a b.png\"}", "batch|--like=a b.png"},
        {"{\"like\":\"x\",\"prompt\":null}", "batch|--like=x"},
        {"{\"prompt\":\"a\",\"cfg\":5,\"eta\":0.5,\"denoise\":0.1,\"x\":5.0,\"y\":-3}",
         "batch|--cfg=5|--eta=0.5|--denoise=0.10000000000000001|--x=5|--y=-3|--|a"},
        {"{\"prompt\":\"a\",\"fold\":true,\"yes\":false,\"init\":null,\"auto\":true}",
         "batch|--fold|--auto|--|a"},
        {"{\"prompt\":\"a\",\"auto\":3}", "batch|--auto=3|--|a"},
        {"{\"prompt\":\"a\",\"adapter\":[\"x:0.5,te=1\",\"y\",7,0.5],\"embedding\":[]}",
         "batch|--adapter=x:0.5,te=1|--adapter=y|--adapter=7|--adapter=0.5|--|a"},
        {"{\"prompt\":\"a\",\"size\":512}", "batch|--size=512|--|a"},
        {"{\"prompt\":\"a\",\"size\":\"8x9\"}", "batch|--size=8x9|--|a"},
        {"{\"prompt\":\"a\",\"size\":[512,768]}", "batch|--size=512x768|--|a"},
        {"{\"prompt\":\"a\",\"size\":[\"8\",9.0]}", "batch|--size=8x9|--|a"},
        {"{\"prompt\":\"\u00e4\",\"negative\":\"=\\n\"}", "batch|--negative==\n|--|\u00e4"},
        {"{\"prompt\":\"a\",\"adapter\":{}}", NULL},
        {"{\"prompt\":\"a\",\"adapter\":[{}]}", NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct job j = {.options = json_loads(table[i].job, 0, NULL)};
        struct err err = {0};
        char **argv = NULL, line[300] = "";
        int argc = -1, rc = job_arguments(&j, "batch", &argv, &argc, &err);
        cr_expect_eq(rc, table[i].line ? 0 : ERR_ARG, "%s: %s", table[i].job, err.msg);
        for (int k = 0; k < argc; k++)
            snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s", k ? "|" : "",
                     argv[k]);
        cr_expect_str_eq(line, table[i].line ? table[i].line : "");
        cr_expect(table[i].line ? !argv[argc] : !argv && !argc && strstr(err.msg, "'adapter'"));
        job_arguments_free(argv);
        json_decref(j.options);
    }
    job_arguments_free(NULL);
}
