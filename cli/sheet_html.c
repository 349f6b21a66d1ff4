#include "sheet_html.h"

#include "unet/file.h"

#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char head[] =
    "<!doctype html><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\n"
    "<style>\n"
    "body{font:15px/1.4 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}\n"
    "h1{font-size:1.2em;font-weight:600;white-space:pre-line}\n"
    "table{border-collapse:separate;border-spacing:8px}th{font-weight:500;text-align:left}\n"
    "td{vertical-align:top}img{display:block;max-width:min(40vw,512px);min-width:min(40vw,256px);"
    "cursor:zoom-"
    "in;"
    "image-rendering:auto}\n"
    "td:focus-within img,img:active{outline:2px solid #e65a00}\n"
    "dialog{border:0;padding:0}dialog img{max-width:96vw;max-height:96vh;width:min(96vw,96vh);"
    "cursor:zoom-out}\n"
    "pre{white-space:pre-wrap;font-size:12px;color:#555}\n"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{color:#aaa}}\n"
    "</style>\n";
static const char tail[] = "<dialog id=d onclick=\"this.close()\"><img id=i alt=\"\"></dialog>\n"
                           "<script>document.querySelectorAll('td "
                           "img').forEach(m=>m.onclick=()=>{i.src=m.src;d.showModal()})"
                           "</script>\n";

static void put_text(FILE *f, const char *s)
{
    for (; s && *s; s++)
        switch (*s) {
        case '<': fputs("&lt;", f); break;
        case '&': fputs("&amp;", f); break;
        case '"': fputs("&quot;", f); break;
        default: putc(*s, f);
        }
}

static int put_picture(FILE *f, const struct image *im, const char *label, struct err *err)
{
    uint8_t *png = NULL;
    size_t n = 0;
    int rc = image_encode_png(&png, &n, im, NULL, 0, err);
    unsigned char *text = rc == 0 && n < INT_MAX / 2 ? malloc(4 * (n / 3 + 1) + 1) : NULL;
    if (rc == 0 && !text)
        rc = err_nomem(err, n);
    if (rc == 0) {
        EVP_EncodeBlock(text, png, (int)n);
        fprintf(f, "<img src=\"data:image/png;base64,%s\" alt=\"", (char *)text);
        put_text(f, label);
        fputs("\">", f);
    }
    free(text);
    free(png);
    return rc;
}

static const char *word(const char *const *list, int i)
{
    return list ? list[i] : NULL;
}

static int put_row(FILE *f, const struct sheet *s, int i, struct err *err)
{
    int rc = 0;
    fputs("<tr>", f);
    if (s->row) {
        fputs("<th>", f);
        put_text(f, word(s->row, i));
    }
    for (int j = 0; j < s->columns && rc == 0; j++) {
        int k = i * s->columns + j;
        const char *label = word(s->label, k);
        fputs("<td>", f);
        if (s->picture[k].rgb)
            rc = put_picture(f, &s->picture[k], label ? label : word(s->column, j), err);
        put_text(f, label);
    }
    fputc('\n', f);
    return rc;
}

static int put_page(FILE *f, const struct sheet *s, const char *settings, struct err *err)
{
    int rc = 0;
    fputs(head, f);
    fputs("<title>", f);
    put_text(f, s->title);
    fputs("</title>\n<h1>", f);
    put_text(f, s->title);
    fputs("</h1>\n<table>\n", f);
    if (s->column) {
        fputs(s->row ? "<tr><th>" : "<tr>", f);
        for (int j = 0; j < s->columns; j++) {
            fputs("<th>", f);
            put_text(f, word(s->column, j));
        }
        fputc('\n', f);
    }
    for (int i = 0; i < s->rows && rc == 0; i++)
        rc = put_row(f, s, i, err);
    fputs("</table>\n", f);
    if (settings) {
        fputs("<details><summary>Settings</summary><pre>", f);
        put_text(f, settings);
        fputs("</pre></details>\n", f);
    }
    fputs(tail, f);
    return rc;
}

int sheet_html(const char *path, const struct sheet *s, const char *settings, struct err *err)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return err_nomem(err, 64);
    int rc = put_page(f, s, settings, err);
    if (fclose(f) != 0 && rc == 0)
        rc = err_nomem(err, n);
    rc = rc < 0 ? rc : file_replace(path, text, n, err);
    free(text);
    return rc;
}
