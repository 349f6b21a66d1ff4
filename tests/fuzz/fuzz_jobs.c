/* Fuzzes the files of jobs. The first byte chooses the kind, and whether the rest is the text or picks the pieces of one;
 * what comes of it must be jobs that can be put on a command line. */
#define JOBS_REPEAT_MOST 64
#include "cli/jobs_csv.c"
#include "cli/jobs_read.c"
#include "cli/jobs_text.c"

#include <assert.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const pieces[] = {"{",
                                     "}",
                                     "[",
                                     "]",
                                     ":",
                                     ",",
                                     "\n",
                                     "\"",
                                     "\r\n",
                                     "\"prompt\":\"a\",",
                                     "\"repeat\":3,",
                                     "\"repeat\":",
                                     "\"grid\":{\"cfg\":[1,2],\"seed\":[3]},",
                                     "\"grid\":{",
                                     "\"id\":\"x\",",
                                     "\"seed\":9223372036854775807,",
                                     "\"size\":[64,64],",
                                     "\"width\":64,\"height\":32,",
                                     "\"fold\":true,",
                                     "\"adapter\":[\"a\",\"b:0.5\"],",
                                     "\"like\":\"p\"}\n",
                                     "id,prompt,seed,adapter,adapter,fold,repeat\n",
                                     "x,\"a\"\"b\",1,,y,true,2\n",
                                     "--prompt \"a b\" ",
                                     "--steps 3 ",
                                     "--n_iter 2 ",
                                     "--seed -1 ",
                                     "--cfg_scale 2 ",
                                     "--styles x ",
                                     "'",
                                     "\\",
                                     "null",
                                     "1e3",
                                     "-0.5",
                                     " ",
                                     "\xef\xbb\xbf",
                                     "a"};
enum { PIECES = sizeof pieces / sizeof *pieces };

static void bad_line(void *user, int line, const char *why)
{
    (void)user;
    assert(line > 0 && *why);
}

static char *make_text(const uint8_t *data, size_t size, bool whole, size_t *n)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, n);
    for (size_t i = 0; i < size; i++)
        if (whole)
            fputc(data[i], f);
        else
            fputs(pieces[data[i] % PIECES], f);
    fclose(f);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct jobs j = {0};
    struct err err;
    size_t n = 0;
    if (!size)
        return 0;
    struct jobs_reading r = {.jobs = &j, .name = "fuzz", .bad = bad_line};
    char *text = make_text(data + 1, size - 1, data[0] & 4, &n);
    read_text(&r, &forms[(data[0] & 3) % 3], text, n, &err);
    for (int i = 0; i < j.n && i < 40; i++) {
        char **argv = NULL;
        int argc = 0;
        if (job_arguments(&j.at[i], "batch", &argv, &argc, &err) == 0) {
            assert(argc >= 1 && !strcmp(argv[0], "batch") && !argv[argc]);
            job_arguments_free(argv);
        }
    }
    jobs_release(&j);
    free(text);
    return 0;
}
