/* What comes back from a server: head, un-chunking, SSE events, and whether each token is the expected one.
 *
 * Rule 1: every token is checked. The first time a token's event is seen it is parsed (spacing, escapes and line ends are the
 *         server's business); its bytes are then remembered, and the next such event is compared with one memcmp.
 * Rule 2: an answer is COMPLETE only with its terminal event, a clean end of body, and as many tokens as were asked for. */
#ifndef BENCH_RESPONSE_H
#define BENCH_RESPONSE_H

#include "json.h"

enum dialect { TOKENS, OPENAI, PLAIN }; /* {"token": …} events, chat.completion.chunk events, text/plain */
enum framing { CHUNKED, LENGTH, UNTIL_CLOSE };
enum part { HEAD, BODY, CHUNK_SIZE, CHUNK_END, TRAILER, ENDED };

struct expected_token {
    char *text;
    size_t length;
    char *raw; /* the event's bytes as the server first sent it; NULL until then */
    size_t raw_length;
};

struct expected {
    struct expected_token *tokens;
    size_t count; /* token i of a stream must be tokens[i % count] */
};

struct response {
    enum part part;
    enum framing framing;
    int status;
    int close; /* the server will close the connection after this answer */
    int done;  /* the terminal event was seen */
    int error; /* an error event was seen */
    uint64_t left; /* bytes left of this chunk, or of the body */
    uint64_t tokens;
    char *held; /* an incomplete head, size line or event */
    size_t held_length, held_capacity;
    size_t offset; /* PLAIN: how far into the current token */
    size_t line; /* how much of a chunk's line lies at the end of held */
    char wrong[160]; /* the first thing that was not as it must be; "" when all is well */
};

#define HELD_MOST (1 << 20)

static void response_reset(struct response *r) {
    char *held = r->held;
    size_t capacity = r->held_capacity;
    memset(r, 0, sizeof *r);
    r->held = held;
    r->held_capacity = capacity;
}

static void response_free(struct response *r) {
    free(r->held);
    r->held = NULL;
    r->held_length = r->held_capacity = 0;
}

static void response_wrong(struct response *r, const char *what, const char *detail, size_t length) {
    if (r->wrong[0])
        return;
    int n = snprintf(r->wrong, sizeof r->wrong, "token %llu: %s", (unsigned long long)r->tokens, what);
    if (detail && n > 0 && n < (int)sizeof r->wrong - 4)
        snprintf(r->wrong + n, sizeof r->wrong - (size_t)n, " '%.*s'", (int)(length > 60 ? 60 : length), detail);
}

static void response_hold(struct response *r, const char *p, size_t n) {
    if (r->held_length + n > r->held_capacity) {
        r->held_capacity = (r->held_length + n) * 2 < 512 ? 512 : (r->held_length + n) * 2;
        r->held = realloc(r->held, r->held_capacity);
        if (!r->held)
            abort();
    }
    memmove(r->held + r->held_length, p, n);
    r->held_length += n;
}

/* End of the event that begins at p: just after its blank line; NULL when it is not all there. */
static const char *event_end(const char *p, const char *limit) {
    while (p < limit) {
        const char *line = memchr(p, '\n', (size_t)(limit - p));
        if (!line)
            return NULL;
        if (line + 1 < limit && line[1] == '\n')
            return line + 2;
        if (line + 2 < limit && line[1] == '\r' && line[2] == '\n')
            return line + 3;
        p = line + 1;
    }
    return NULL;
}

/* The string value of `key` in this JSON, unescaped into out (as large as the JSON); -1 when it has none. */
static long value_of(const char *json, size_t length, const char *key, char *out) {
    const char *at = memmem(json, length, key, strlen(key));
    if (!at)
        return -1;
    const char *limit = json + length;
    at += strlen(key);
    while (at < limit && (*at == ' ' || *at == ':'))
        at++;
    if (at >= limit || *at != '"')
        return -1;
    size_t size;
    return json_string(at + 1, limit, out, &size) ? (long)size : -1;
}

static void response_event(struct response *r, struct expected *e, enum dialect dialect, uint64_t limit, const char *event, size_t length) {
    char data[8192], text[8192];
    size_t n = 0;
    int has_data = 0;
    for (const char *p = event, *end = event + length; p < end;) {
        const char *line = memchr(p, '\n', (size_t)(end - p));
        size_t size = (size_t)((line ? line : end) - p);
        const char *next = line ? line + 1 : end;
        if (size && p[size - 1] == '\r')
            size--;
        if (size >= 5 && !memcmp(p, "data:", 5)) {
            const char *value = p + 5;
            size_t amount = size - 5;
            if (amount && *value == ' ')
                value++, amount--;
            if (n + amount + 1 >= sizeof data) {
                response_wrong(r, "an event that is too long", NULL, 0);
                return;
            }
            if (has_data)
                data[n++] = '\n';
            memcpy(data + n, value, amount);
            n += amount;
            has_data = 1;
        }
        p = next;
    }
    if (!has_data)
        return; /* a comment: a heartbeat */
    if (n == 6 && !memcmp(data, "[DONE]", 6)) {
        r->done = 1;
        return;
    }
    if (r->done)
        response_wrong(r, "an event after [DONE]:", data, n);
    long size = value_of(data, n, dialect == OPENAI ? "\"content\"" : "\"token\"", text);
    if (size < 0 || (size == 0 && dialect == OPENAI)) {
        if (memmem(data, n, "\"error\"", 7)) {
            r->error = 1;
            response_wrong(r, "an error event:", data, n);
        } else if (dialect != OPENAI)
            response_wrong(r, "an event that is no token:", data, n);
        return;
    }
    if (limit && r->tokens >= limit) {
        response_wrong(r, "more tokens than asked for:", text, (size_t)size);
        return;
    }
    if (e->count) {
        struct expected_token *token = &e->tokens[r->tokens % e->count];
        if ((size_t)size != token->length || memcmp(text, token->text, token->length))
            response_wrong(r, "is not the expected one, but", text, (size_t)size);
        else if (!token->raw) {
            token->raw = malloc(length);
            if (!token->raw)
                abort();
            memcpy(token->raw, event, length);
            token->raw_length = length;
        }
    }
    r->tokens++;
}

/* Consume as many whole events of these body bytes as there are; returns how many bytes were consumed. */
static size_t response_events(struct response *r, struct expected *e, enum dialect dialect, uint64_t limit, const char *p, size_t n) {
    const char *start = p, *end = p + n;
    while (p < end) {
        if (e->count && !r->done && (!limit || r->tokens < limit)) {
            struct expected_token *token = &e->tokens[r->tokens % e->count];
            if (token->raw && (size_t)(end - p) >= token->raw_length && !memcmp(p, token->raw, token->raw_length)) {
                p += token->raw_length;
                r->tokens++;
                continue;
            }
        }
        const char *next = event_end(p, end);
        if (!next)
            break;
        response_event(r, e, dialect, limit, p, (size_t)(next - p));
        p = next;
    }
    return (size_t)(p - start);
}

static void response_plain(struct response *r, struct expected *e, uint64_t limit, const char *p, size_t n) {
    while (n && e->count) {
        struct expected_token *token = &e->tokens[r->tokens % e->count];
        size_t size = token->length - r->offset < n ? token->length - r->offset : n;
        if ((limit && r->tokens >= limit) || memcmp(p, token->text + r->offset, size)) {
            response_wrong(r, "is not the expected text, but", p, size);
            return;
        }
        r->offset += size;
        p += size;
        n -= size;
        if (r->offset == token->length) {
            r->offset = 0;
            r->tokens++;
        }
    }
}

static void response_body(struct response *r, struct expected *e, enum dialect dialect, uint64_t limit, const char *p, size_t n) {
    if (r->wrong[0] && !r->done)
        return; /* nothing after the first wrong byte is judged; it is wrong once */
    if (dialect == PLAIN) {
        response_plain(r, e, limit, p, n);
        return;
    }
    if (r->held_length) {
        if (r->held_length + n > HELD_MOST) {
            response_wrong(r, "an event that does not end", NULL, 0);
            return;
        }
        response_hold(r, p, n);
        size_t used = response_events(r, e, dialect, limit, r->held, r->held_length);
        r->held_length -= used;
        memmove(r->held, r->held + used, r->held_length);
        return;
    }
    size_t used = response_events(r, e, dialect, limit, p, n);
    if (used < n)
        response_hold(r, p + used, n - used);
}

static int header_is(const char *line, const char *name, const char **value) {
    size_t n = strlen(name);
    if (strncasecmp(line, name, n) || line[n] != ':')
        return 0;
    line += n + 1;
    while (*line == ' ' || *line == '\t')
        line++;
    *value = line;
    return 1;
}

static void response_head(struct response *r) {
    r->held[r->held_length - 2] = 0; /* the blank line's CR: there is a NUL to stop at */
    r->framing = UNTIL_CLOSE;
    r->status = r->held_length > 12 ? atoi(r->held + 9) : 0;
    r->close = r->held_length > 7 && r->held[7] == '0';
    for (char *line = strstr(r->held, "\r\n"); line; line = strstr(line, "\r\n")) {
        const char *value;
        line += 2;
        if (header_is(line, "transfer-encoding", &value) && !strncasecmp(value, "chunked", 7))
            r->framing = CHUNKED;
        else if (header_is(line, "content-length", &value)) {
            r->framing = LENGTH;
            r->left = strtoull(value, NULL, 10);
        } else if (header_is(line, "connection", &value) && !strncasecmp(value, "close", 5))
            r->close = 1;
    }
    r->held_length = 0;
    r->part = r->framing == CHUNKED ? CHUNK_SIZE : r->framing == LENGTH && r->left == 0 ? ENDED : BODY;
    if (r->framing == UNTIL_CLOSE)
        r->close = 1;
}

/* Take these bytes; returns how many belonged to this answer (fewer than n only when it has ENDED). */
static size_t response_feed(struct response *r, struct expected *e, enum dialect dialect, uint64_t limit, const char *p, size_t n) {
    const char *start = p, *end = p + n;
    char line[128];
    size_t line_length;
    while (p < end && r->part != ENDED) {
        switch (r->part) {
        case HEAD: {
            size_t before = r->held_length, take = (size_t)(end - p);
            if (before + take > 65536)
                take = 65536 - before;
            response_hold(r, p, take);
            size_t from = before > 3 ? before - 3 : 0;
            char *blank = memmem(r->held + from, r->held_length - from, "\r\n\r\n", 4);
            if (!blank) {
                p += take;
                if (r->held_length >= 65536) {
                    response_wrong(r, "a head that does not end", NULL, 0);
                    r->part = ENDED;
                }
                break;
            }
            size_t head = (size_t)(blank - r->held) + 4;
            p += head - before;
            r->held_length = head;
            response_head(r);
            break;
        }
        case BODY: {
            size_t amount = (size_t)(end - p);
            if (r->framing != UNTIL_CLOSE && amount > r->left)
                amount = (size_t)r->left;
            response_body(r, e, dialect, limit, p, amount);
            p += amount;
            if (r->framing != UNTIL_CLOSE) {
                r->left -= amount;
                if (!r->left)
                    r->part = r->framing == CHUNKED ? CHUNK_END : ENDED;
            }
            break;
        }
        default: { /* CHUNK_SIZE, CHUNK_END and TRAILER: lines */
            const char *newline = memchr(p, '\n', (size_t)(end - p));
            if (r->line) { /* some of this line came in an earlier read: it lies at the end of held */
                size_t more = newline ? (size_t)(newline + 1 - p) : (size_t)(end - p);
                response_hold(r, p, more);
                r->line += more;
                p += more;
                if (!newline)
                    break;
                line_length = r->line;
                if (line_length >= sizeof line) {
                    response_wrong(r, "a chunk line that is too long", NULL, 0);
                    r->part = ENDED;
                    break;
                }
                memcpy(line, r->held + r->held_length - line_length, line_length);
                r->held_length -= line_length;
                r->line = 0;
            } else if (!newline) {
                response_hold(r, p, (size_t)(end - p));
                r->line = (size_t)(end - p);
                p = end;
                break;
            } else {
                line_length = (size_t)(newline + 1 - p);
                if (line_length >= sizeof line) {
                    response_wrong(r, "a chunk line that is too long", NULL, 0);
                    r->part = ENDED;
                    break;
                }
                memcpy(line, p, line_length);
                p = newline + 1;
            }
            line[line_length] = 0;
            if (r->part == CHUNK_SIZE) {
                char *after;
                r->left = strtoull(line, &after, 16);
                if (after == line) {
                    response_wrong(r, "a chunk without a size:", line, line_length);
                    r->part = ENDED;
                } else
                    r->part = r->left ? BODY : TRAILER;
            } else if (r->part == CHUNK_END)
                r->part = CHUNK_SIZE;
            else if (line_length <= 2)
                r->part = ENDED;
        }
        }
    }
    return (size_t)(p - start);
}

#endif
