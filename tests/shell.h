/* shell.h: runs the program as a user does, in a folder of the test's own. WEFT_BIN names the program.
 *
 *     struct shell s;
 *     shell_open(&s);
 *     weft(&s, "list", "--home", in(&s, "home"), NULL);
 *     cr_expect_eq(s.code, 0, "%s", s.err);
 *     shell_close(&s);
 */
#ifndef WEFT_TESTS_SHELL_H
#define WEFT_TESTS_SHELL_H

#include "unet/file.h"
#include "unet/image.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* A folder of the test's own, and what the last command said. */
struct shell {
    char dir[64];
    int code; /* exit code, or 128 + signal */
    char *out, *err;
};

static inline void shell_open(struct shell *s)
{
    memset(s, 0, sizeof *s);
    strcpy(s->dir, "/tmp/weft-cli-XXXXXX");
    cr_assert(mkdtemp(s->dir), "%s", strerror(errno));
}

static inline void shell_close(struct shell *s)
{
    char cmd[100];
    free(s->out);
    free(s->err);
    snprintf(cmd, sizeof cmd, "rm -rf %.60s", s->dir);
    cr_assert_eq(system(cmd), 0);
}

/* dir/name, in one of a few rotating buffers. */
static inline const char *in(const struct shell *s, const char *name)
{
    static char buf[64][256];
    static int next;
    char *b = buf[next++ % 64];
    snprintf(b, sizeof buf[0], "%s/%s", s->dir, name);
    return b;
}

static inline pid_t start(struct shell *s, char *const argv[])
{
    pid_t pid = fork();
    if (pid == 0) {
        int o = open(in(s, ".out"), O_CREAT | O_TRUNC | O_WRONLY, 0600);
        int e = open(in(s, ".err"), O_CREAT | O_TRUNC | O_WRONLY, 0600);
        dup2(o, 1);
        dup2(e, 2);
        signal(SIGINT, SIG_DFL); /* a runner in the background passes it on ignored */
        execv(argv[0], argv);
        _exit(127);
    }
    cr_assert(pid > 0);
    return pid;
}

static inline void finish(struct shell *s, pid_t pid)
{
    int status;
    struct err err;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    s->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    free(s->out);
    free(s->err);
    cr_assert_eq(file_read(&s->out, NULL, in(s, ".out"), 1 << 24, &err), 0, "%s", err.msg);
    cr_assert_eq(file_read(&s->err, NULL, in(s, ".err"), 1 << 24, &err), 0, "%s", err.msg);
}

/* Runs weft with these arguments, the last NULL. */
static inline void weft(struct shell *s, ...)
{
    char *argv[64];
    const char *bin = getenv("WEFT_BIN");
    int n = 0;
    va_list ap;
    argv[n++] = strdup(bin ? bin : "build/weft");
    va_start(ap, s);
    for (char *a; (a = va_arg(ap, char *));)
        argv[n++] = a;
    va_end(ap);
    argv[n] = NULL;
    finish(s, start(s, argv));
    free(argv[0]);
}

/* Pictures, or halves of them, in the folder. */
static inline int files(const struct shell *s)
{
    int n = 0;
    DIR *d = opendir(s->dir);
    for (struct dirent *e; d && (e = readdir(d));)
        n += strstr(e->d_name, ".png") != NULL;
    if (d)
        closedir(d);
    return n;
}

static inline void expect_failure(const struct shell *s, int code, const char *words)
{
    cr_expect_eq(s->code, code, "exit code %d, stderr: %s", s->code, s->err);
    cr_expect(strstr(s->err, words), "expected '%s' in: %s", words, s->err);
    cr_expect(!strncmp(s->err, "weft: ", 6) || strstr(s->err, "\nweft: "), "stderr: %s", s->err);
    cr_expect_eq(files(s), 0, "a picture appeared");
    cr_expect_eq(*s->out, 0, "stdout: %s", s->out);
}

static inline void expect_success(const struct shell *s, int pictures)
{
    cr_expect_eq(s->code, 0, "exit code %d, stderr: %s", s->code, s->err);
    cr_expect_eq(files(s), pictures, "%d pictures", files(s));
}

static inline void read_picture(const char *path, struct image *im, struct image_texts *t)
{
    struct err err;
    cr_assert_eq(image_read_png(path, im, t, &err), 0, "%s", err.msg);
}

#endif
