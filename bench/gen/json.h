/* The little JSON that the C programs of the harness speak: one flat object per line, both ways.
 *
 * Rule 1: values are strings, numbers, true, false or null; no nesting (lists are only ever written).
 * Rule 2: the line is parsed in place; what a field points to lives as long as the line does. */
#ifndef BENCH_JSON_H
#define BENCH_JSON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct field {
    char *key;
    char *text; /* for strings: unescaped, NUL-terminated (may hold NULs: see length) */
    size_t length;
    double number;
};

struct object {
    struct field fields[48];
    int count;
};

static int json_hex(const char *p) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

static size_t json_utf8(char *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | (code >> 6));
        out[1] = (char)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | (code >> 12));
        out[1] = (char)(0x80 | ((code >> 6) & 63));
        out[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | (code >> 18));
    out[1] = (char)(0x80 | ((code >> 12) & 63));
    out[2] = (char)(0x80 | ((code >> 6) & 63));
    out[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* Unescape the string that begins after an opening quote at `p` and ends before `limit`, into `out` (never longer than the
 * input, so `out` may be `p`). Returns the position after the closing quote, or NULL when the string does not end. */
static const char *json_string(const char *p, const char *limit, char *out, size_t *length) {
    char *start = out;
    while (p < limit && *p != '"') {
        if (*p != '\\') {
            *out++ = *p++;
            continue;
        }
        if (++p >= limit)
            return NULL;
        switch (*p) {
        case 'n': *out++ = '\n'; p++; break;
        case 'r': *out++ = '\r'; p++; break;
        case 't': *out++ = '\t'; p++; break;
        case 'b': *out++ = '\b'; p++; break;
        case 'f': *out++ = '\f'; p++; break;
        case 'u': {
            if (limit - p < 5)
                return NULL;
            int code = json_hex(p + 1);
            if (code < 0)
                return NULL;
            p += 5;
            uint32_t point = (uint32_t)code;
            if (code >= 0xD800 && code < 0xDC00 && limit - p >= 6 && p[0] == '\\' && p[1] == 'u') {
                int low = json_hex(p + 2);
                if (low >= 0xDC00 && low < 0xE000) {
                    point = 0x10000 + (((uint32_t)code - 0xD800) << 10) + ((uint32_t)low - 0xDC00);
                    p += 6;
                }
            }
            out += json_utf8(out, point);
            break;
        }
        default: *out++ = *p++;
        }
    }
    if (p >= limit)
        return NULL;
    *length = (size_t)(out - start);
    return p + 1;
}

static int json_parse(char *line, struct object *object) {
    char *limit = line + strlen(line);
    char *p = line;
    object->count = 0;
    while (p < limit && *p != '{')
        p++;
    p++;
    while (p < limit) {
        while (p < limit && (*p == ' ' || *p == ',' || *p == '\n'))
            p++;
        if (p >= limit || *p == '}')
            return 0;
        if (*p != '"' || object->count == 48)
            return -1;
        struct field *field = &object->fields[object->count++];
        size_t length;
        field->key = p + 1;
        const char *after = json_string(p + 1, limit, p + 1, &length);
        if (!after)
            return -1;
        field->key[length] = 0;
        p = (char *)after;
        while (p < limit && (*p == ' ' || *p == ':'))
            p++;
        field->text = NULL;
        field->number = 0;
        field->length = 0;
        if (*p == '"') {
            field->text = p + 1;
            after = json_string(p + 1, limit, p + 1, &field->length);
            if (!after)
                return -1;
            field->text[field->length] = 0;
            p = (char *)after;
        } else if (*p == 't' || *p == 'f' || *p == 'n') {
            field->number = *p == 't';
            while (p < limit && *p >= 'a' && *p <= 'z')
                p++;
        } else {
            char *end;
            field->number = strtod(p, &end);
            if (end == p)
                return -1;
            p = end;
        }
    }
    return -1;
}

static struct field *json_field(struct object *object, const char *key) {
    for (int i = 0; i < object->count; i++)
        if (!strcmp(object->fields[i].key, key))
            return &object->fields[i];
    return NULL;
}

static double json_number(struct object *object, const char *key, double otherwise) {
    struct field *field = json_field(object, key);
    return field ? field->number : otherwise;
}

static const char *json_text(struct object *object, const char *key, const char *otherwise) {
    struct field *field = json_field(object, key);
    return field && field->text ? field->text : otherwise;
}

static void json_print(FILE *out, const char *text, size_t length) {
    fputc('"', out);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c >= 0x7f)
            fprintf(out, "\\u%04x", c); /* bytes shown as Latin-1: this is for people */
        else
            fputc(c, out);
    }
    fputc('"', out);
}

#endif
