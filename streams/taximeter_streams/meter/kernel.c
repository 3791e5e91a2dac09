/* The meter's inner loop: reads the plain majority of usage events straight into columns.
 *
 * It answers for an event only where it is sure: plain ASCII text without escapes, whole numbers and short decimals, times in
 * UTC, no key twice, every constraint of the schema met, nothing that contradicts itself. Anything else it marks as not
 * sure, and the reference decoder (taximeter_schemas.wire) judges that event. So it must never accept what the reference
 * rejects, and must compute the same hashes; a property test feeds both with the same bytes.
 *
 * Memory: each payload ends with a NUL byte, which no token of JSON holds, so every loop over text stops there at the latest.
 * Each output array has a place for every event; lists (blocks, attributes) have one for as many as the text could hold.
 */
#include <stdint.h>
#include <string.h>

#define TOKENS_MAX 100000000ULL
#define BLOCKS_MAX 65536
#define ATTRIBUTES_MAX 32

typedef struct { uint32_t start, length; } span;

/* One member for each array that kernel.py allocates, in the same order. */
typedef struct {
    uint8_t *sure;
    int64_t *time_us;
    span *source, *event_id, *request_id, *root_request_id, *worker_id, *lease_id;
    span *tenant, *feature, *model, *adapter, *pool;
    uint8_t *operation, *outcome, *service_tier, *attribution;
    uint16_t *hop, *attempt;
    uint32_t *uncached_input, *cache_read_gpu, *cache_read_cpu, *cache_read_disk, *cache_read_provider;
    uint32_t *cache_write_5m, *cache_write_1h, *output, *reasoning, *block_size, *hit_blocks;
    uint64_t *worker_sequence;
    double *gpu_seconds;
    float *queue_ms, *ttft_ms, *total_ms;
    uint8_t *queue_ms_null, *ttft_ms_null, *total_ms_null;
    uint64_t *blocks_end, *attributes_end; /* how many have been listed up to and with this event */
    span *blocks, *attribute_keys, *attribute_values;
    uint8_t *identity, *body;
    char *scratch; /* for the canonical body: the longest payload and SCRATCH_EXTRA more */
} columns;

/* ---- BLAKE2b with a digest of 16 bytes (RFC 7693) ---- */

static const uint64_t IV[8] = {
    0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
    0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL};
static const uint8_t SIGMA[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

#define ROT(x, n) (((x) >> (n)) | ((x) << (64 - (n))))
#define MIX(a, b, c, d, x, y)                                                                          \
    a += b + (x); d = ROT(d ^ a, 32); c += d; b = ROT(b ^ c, 24);                                      \
    a += b + (y); d = ROT(d ^ a, 16); c += d; b = ROT(b ^ c, 63);
#define ROUND(r)                                                                                       \
    MIX(v0, v4, v8, v12, m[SIGMA[r][0]], m[SIGMA[r][1]]) MIX(v1, v5, v9, v13, m[SIGMA[r][2]], m[SIGMA[r][3]])          \
    MIX(v2, v6, v10, v14, m[SIGMA[r][4]], m[SIGMA[r][5]]) MIX(v3, v7, v11, v15, m[SIGMA[r][6]], m[SIGMA[r][7]])        \
    MIX(v0, v5, v10, v15, m[SIGMA[r][8]], m[SIGMA[r][9]]) MIX(v1, v6, v11, v12, m[SIGMA[r][10]], m[SIGMA[r][11]])      \
    MIX(v2, v7, v8, v13, m[SIGMA[r][12]], m[SIGMA[r][13]]) MIX(v3, v4, v9, v14, m[SIGMA[r][14]], m[SIGMA[r][15]])

static void compress(uint64_t h[8], const uint8_t *block, uint64_t counted, int last) {
    uint64_t m[16];
    memcpy(m, block, 128); /* little-endian machines only; kernel.py asks */
    uint64_t v0 = h[0], v1 = h[1], v2 = h[2], v3 = h[3], v4 = h[4], v5 = h[5], v6 = h[6], v7 = h[7];
    uint64_t v8 = IV[0], v9 = IV[1], v10 = IV[2], v11 = IV[3], v12 = IV[4] ^ counted, v13 = IV[5];
    uint64_t v14 = last ? ~IV[6] : IV[6], v15 = IV[7];
    ROUND(0) ROUND(1) ROUND(2) ROUND(3) ROUND(4) ROUND(5) ROUND(6) ROUND(7) ROUND(8) ROUND(9) ROUND(10) ROUND(11)
    h[0] ^= v0 ^ v8; h[1] ^= v1 ^ v9; h[2] ^= v2 ^ v10; h[3] ^= v3 ^ v11;
    h[4] ^= v4 ^ v12; h[5] ^= v5 ^ v13; h[6] ^= v6 ^ v14; h[7] ^= v7 ^ v15;
}

static void blake2b_16(const char *text, uint64_t size, uint8_t *digest) {
    uint64_t h[8];
    memcpy(h, IV, sizeof h);
    h[0] ^= 0x01010000 ^ 16;
    uint64_t done = 0;
    while (size - done > 128) {
        compress(h, (const uint8_t *)text + done, done + 128, 0);
        done += 128;
    }
    uint8_t rest[128] = {0};
    memcpy(rest, text + done, size - done);
    compress(h, rest, size, 1);
    memcpy(digest, h, 16);
}

/* ---- reading: every function moves *at behind what it read, or returns 0 where it is not sure ---- */

enum { TAG = 1, IDENTIFIER = 2, HASH = 4, TEXT = 8, FIRST_OF_TAG = 16 };
static uint8_t KINDS[256];

static void fill_kinds(void) {
    for (int c = 0x20; c <= 0x7e; c++) {
        if (c == '"' || c == '\\') continue;
        KINDS[c] |= TEXT;
        if (c > 0x20) KINDS[c] |= IDENTIFIER;
        int alphanumeric = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (alphanumeric) KINDS[c] |= TAG | FIRST_OF_TAG;
        if (memchr("._:/@+-", c, 7)) KINDS[c] |= TAG;
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')) KINDS[c] |= HASH;
    }
}

static inline void skip_space(const char **at) {
    while (**at == ' ' || **at == '\n' || **at == '\t' || **at == '\r') (*at)++;
}

static inline int take(const char **at, char wanted) {
    skip_space(at);
    if (**at != wanted) return 0;
    (*at)++;
    return 1;
}

/* A string of characters of one kind, without escapes. `found` is what stands between the quotes. */
static inline int read_string(const char **at, uint8_t kind, const char **found, uint32_t *length) {
    if (!take(at, '"')) return 0;
    const char *p = *at;
    while (KINDS[(uint8_t)*p] & kind) p++;
    if (*p != '"') return 0;
    *found = *at;
    *length = (uint32_t)(p - *at);
    *at = p + 1;
    return 1;
}

static inline int read_span(const char **at, const char *text, uint8_t kind, uint32_t least, uint32_t most, span *into) {
    const char *found;
    uint32_t length;
    if (!read_string(at, kind, &found, &length) || length < least || length > most) return 0;
    if (kind == TAG && !(KINDS[(uint8_t)*found] & FIRST_OF_TAG)) return 0;
    into->start = (uint32_t)(found - text);
    into->length = length;
    return 1;
}

static inline int read_null(const char **at) {
    skip_space(at);
    if (strncmp(*at, "null", 4)) return 0;
    *at += 4;
    return 1;
}

static inline int read_whole(const char **at, uint64_t most, uint64_t *into) {
    skip_space(at);
    const char *p = *at;
    uint64_t value = 0;
    while (*p >= '0' && *p <= '9' && p - *at < 18) value = value * 10 + (uint64_t)(*p++ - '0');
    long digits = p - *at;
    if (!digits || (digits > 1 && **at == '0') || (*p >= '0' && *p <= '9')) return 0;
    if (*p == '.' || *p == 'e' || *p == 'E' || value > most) return 0;
    *at = p;
    *into = value;
    return 1;
}

typedef struct { double value; const char *text; uint32_t length; int whole; } decimal;

/* A decimal of at most 9 digits before the point and 15 in all, spelt as the reference encoder spells it (or without ".0"). */
static inline int read_decimal(const char **at, double most, decimal *into) {
    static const double TENS[] = {1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
    skip_space(at);
    const char *p = *at;
    uint64_t digits = 0;
    while (*p >= '0' && *p <= '9' && p - *at < 10) digits = digits * 10 + (uint64_t)(*p++ - '0');
    long before = p - *at, after = 0;
    if (!before || before > 9 || (before > 1 && **at == '0')) return 0;
    into->whole = *p != '.';
    if (*p == '.') {
        const char *point = p++;
        while (*p >= '0' && *p <= '9' && p - *at < 17) digits = digits * 10 + (uint64_t)(*p++ - '0');
        after = p - point - 1;
        if (!after || before + after > 15 || (after > 1 && p[-1] == '0')) return 0;
    }
    if ((*p >= '0' && *p <= '9') || *p == '.' || *p == 'e' || *p == 'E') return 0;
    /* Both exact, so the quotient is the double nearest to the text. */
    into->value = (double)digits / TENS[after];
    if (into->value > most || (digits && into->value < 0.001)) return 0;
    into->text = *at;
    into->length = (uint32_t)(p - *at);
    *at = p;
    return 1;
}

static inline int two_digits(const char *p, int *into) {
    if (p[0] < '0' || p[0] > '9' || p[1] < '0' || p[1] > '9') return 0;
    *into = (p[0] - '0') * 10 + (p[1] - '0');
    return 1;
}

/* RFC 3339 in UTC with at most six decimals of a second, of the years 1970 to 2199. */
static int read_time(const char **at, int64_t *into) {
    static const int DAYS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (!take(at, '"')) return 0;
    const char *p = *at;
    for (int i = 0; i < 20; i++) if (!p[i]) return 0;
    int century, year, month, day, hour, minute, second;
    if (!two_digits(p, &century) || !two_digits(p + 2, &year) || p[4] != '-' || !two_digits(p + 5, &month)) return 0;
    if (p[7] != '-' || !two_digits(p + 8, &day) || p[10] != 'T' || !two_digits(p + 11, &hour)) return 0;
    if (p[13] != ':' || !two_digits(p + 14, &minute) || p[16] != ':' || !two_digits(p + 17, &second)) return 0;
    year += century * 100;
    if (year < 1970 || year > 2199 || month < 1 || month > 12 || hour > 23 || minute > 59 || second > 59) return 0;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (day < 1 || day > DAYS[month - 1] + (leap && month == 2)) return 0;
    p += 19;
    int64_t micros = 0;
    if (*p == '.') {
        int count = 0;
        for (p++; *p >= '0' && *p <= '9'; p++, count++) {
            if (count == 6) return 0;
            micros = micros * 10 + (*p - '0');
        }
        if (!count) return 0;
        for (; count < 6; count++) micros *= 10;
    }
    if (*p == 'Z') p++;
    else if (!strncmp(p, "+00:00", 6)) p += 6;
    else return 0;
    if (*p != '"') return 0;
    /* Days since 1970-01-01 (Howard Hinnant's days_from_civil). */
    int y = year - (month <= 2), era = y / 400, of_era = y - era * 400;
    int of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t days = (int64_t)era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
    *into = ((days * 24 + hour) * 60 + minute) * 60 * 1000000 + (int64_t)second * 1000000 + micros;
    *at = p + 1;
    return 1;
}

/* ---- the event ---- */

typedef struct {
    span id, source, subject, tenant, feature, model, adapter, request_id, root_request_id, pool, worker_id, lease_id;
    int64_t time_us;
    uint64_t uncached, gpu, cpu, disk, provider, five, hour, output, reasoning, total, hop, attempt;
    uint64_t block_size, hit_blocks, sequence;
    int has_total, has_subject, has_adapter, has_request, has_root, has_pool, has_lease;
    int operation, outcome, tier, attribution;
    decimal queue, ttft, total_ms, gpu_seconds;
    int has_queue, has_ttft, has_total_ms;
    uint64_t blocks, attributes; /* how many */
} event;

/* In the order of the enumerations in taximeter_schemas.events. */
static const char *const OPERATIONS[] = {"chat", "completion", "embedding", "rerank", "score", "response", "other", 0};
static const char *const OUTCOMES[] = {"completed", "length", "aborted", "error", "refused", 0};
static const char *const TIERS[] = {"standard", "batch", "priority", "provisioned", 0};
static const char *const ATTRIBUTIONS[] = {"engine", "inferred", "none", 0};

static int read_choice(const char **at, const char *const *names, int *into) {
    const char *found;
    uint32_t length;
    if (!read_string(at, TAG, &found, &length)) return 0;
    for (int i = 0; names[i]; i++)
        if (strlen(names[i]) == length && !memcmp(names[i], found, length)) {
            *into = i;
            return 1;
        }
    return 0;
}

static int read_constant(const char **at, const char *wanted) {
    const char *found;
    uint32_t length;
    return read_string(at, TEXT, &found, &length) && strlen(wanted) == length && !memcmp(found, wanted, length);
}

static inline int read_optional(const char **at, const char *text, uint8_t kind, uint32_t most, span *into, int *there) {
    if (read_null(at)) return 1;
    *there = 1;
    return read_span(at, text, kind, 1, most, into);
}

static inline int read_optional_decimal(const char **at, decimal *into, int *there) {
    if (read_null(at)) return 1;
    *there = 1;
    return read_decimal(at, 86400000.0, into);
}

/* Loops over the members of an object: KEY tells one key from the others and notes that it came; a second time is not sure. */
#define OBJECT(at)                                                                                     \
    uint32_t came = 0;                                                                                 \
    const char *key;                                                                                   \
    uint32_t key_length;                                                                               \
    if (!take(at, '{')) return 0;                                                                      \
    skip_space(at);                                                                                    \
    if (**at == '}') { (*at)++; goto closed; }                                                         \
    for (;;) {                                                                                         \
        if (!read_string(at, TEXT, &key, &key_length) || !take(at, ':')) return 0;
#define IS(bit, name) (key_length == sizeof(name) - 1 && !memcmp(key, name, sizeof(name) - 1) && once(&came, bit, &twice))
#define END_OBJECT(at)                                                                                 \
        if (twice) return 0;                                                                           \
        skip_space(at);                                                                                \
        if (**at == ',') { (*at)++; continue; }                                                        \
        if (**at != '}') return 0;                                                                     \
        (*at)++;                                                                                       \
        break;                                                                                         \
    }                                                                                                  \
closed:;

static inline int once(uint32_t *came, int bit, int *twice) {
    if (*came & (1u << bit)) *twice = 1;
    *came |= 1u << bit;
    return 1;
}

static int read_cache_read(const char **at, event *e) {
    int twice = 0;
    OBJECT(at)
        uint64_t *into;
        if (IS(0, "gpu")) into = &e->gpu;
        else if (IS(1, "cpu")) into = &e->cpu;
        else if (IS(2, "disk")) into = &e->disk;
        else if (IS(3, "provider")) into = &e->provider;
        else return 0;
        if (!read_whole(at, TOKENS_MAX, into)) return 0;
    END_OBJECT(at)
    return 1;
}

static int read_cache_write(const char **at, event *e) {
    int twice = 0;
    OBJECT(at)
        uint64_t *into;
        if (IS(0, "5m")) into = &e->five;
        else if (IS(1, "1h")) into = &e->hour;
        else return 0;
        if (!read_whole(at, TOKENS_MAX, into)) return 0;
    END_OBJECT(at)
    return 1;
}

static int read_tokens(const char **at, event *e) {
    int twice = 0;
    OBJECT(at)
        if (IS(0, "uncached_input")) { if (!read_whole(at, TOKENS_MAX, &e->uncached)) return 0; }
        else if (IS(1, "cache_read")) { if (!read_cache_read(at, e)) return 0; }
        else if (IS(2, "cache_write")) { if (!read_cache_write(at, e)) return 0; }
        else if (IS(3, "output")) { if (!read_whole(at, TOKENS_MAX, &e->output)) return 0; }
        else if (IS(4, "reasoning")) { if (!read_whole(at, TOKENS_MAX, &e->reasoning)) return 0; }
        else if (IS(5, "total")) {
            if (!read_null(at)) {
                e->has_total = 1;
                if (!read_whole(at, 8 * TOKENS_MAX, &e->total)) return 0;
            }
        }
        else return 0;
    END_OBJECT(at)
    return 1;
}

static int read_timing(const char **at, event *e) {
    int twice = 0;
    OBJECT(at)
        if (IS(0, "queue_ms")) { if (!read_optional_decimal(at, &e->queue, &e->has_queue)) return 0; }
        else if (IS(1, "ttft_ms")) { if (!read_optional_decimal(at, &e->ttft, &e->has_ttft)) return 0; }
        else if (IS(2, "total_ms")) { if (!read_optional_decimal(at, &e->total_ms, &e->has_total_ms)) return 0; }
        else return 0;
    END_OBJECT(at)
    return 1;
}

static int read_worker(const char **at, const char *text, event *e) {
    int twice = 0;
    OBJECT(at)
        if (IS(0, "id")) { if (!read_span(at, text, IDENTIFIER, 1, 256, &e->worker_id)) return 0; }
        else if (IS(1, "sequence")) { if (!read_whole(at, INT64_MAX, &e->sequence)) return 0; }
        else if (IS(2, "gpu_seconds")) { if (!read_decimal(at, 1000000.0, &e->gpu_seconds)) return 0; }
        else return 0;
    END_OBJECT(at)
    return came & 1;
}

static int read_blocks(const char **at, const char *text, span *into, event *e) {
    if (!take(at, '[')) return 0;
    skip_space(at);
    if (**at == ']') { (*at)++; return 1; }
    for (;;) {
        if (e->blocks == BLOCKS_MAX || !read_span(at, text, HASH, 16, 64, &into[e->blocks])) return 0;
        e->blocks++;
        skip_space(at);
        if (**at == ',') { (*at)++; continue; }
        return take(at, ']');
    }
}

static int read_cache(const char **at, const char *text, span *blocks, event *e) {
    int twice = 0;
    OBJECT(at)
        if (IS(0, "pool")) { if (!read_optional(at, text, TAG, 128, &e->pool, &e->has_pool)) return 0; }
        else if (IS(1, "block_size")) { if (!read_whole(at, 1000000, &e->block_size)) return 0; }
        else if (IS(2, "hit_blocks")) { if (!read_whole(at, 1000000, &e->hit_blocks)) return 0; }
        else if (IS(3, "blocks")) { if (!read_blocks(at, text, blocks, e)) return 0; }
        else if (IS(4, "attribution")) { if (!read_choice(at, ATTRIBUTIONS, &e->attribution)) return 0; }
        else return 0;
    END_OBJECT(at)
    return 1;
}

static int read_attributes(const char **at, const char *text, span *keys, span *values, event *e) {
    if (!take(at, '{')) return 0;
    skip_space(at);
    if (**at == '}') { (*at)++; return 1; }
    for (;;) {
        if (e->attributes == ATTRIBUTES_MAX) return 0;
        span *key = &keys[e->attributes];
        if (!read_span(at, text, TEXT, 0, 64, key) || !take(at, ':')) return 0;
        if (!read_span(at, text, TEXT, 0, 256, &values[e->attributes])) return 0;
        for (uint64_t i = 0; i < e->attributes; i++)
            if (keys[i].length == key->length && !memcmp(text + keys[i].start, text + key->start, key->length)) return 0;
        e->attributes++;
        skip_space(at);
        if (**at == ',') { (*at)++; continue; }
        return take(at, '}');
    }
}

static int read_data(const char **at, const char *text, span *blocks, span *keys, span *values, event *e) {
    int twice = 0;
    OBJECT(at)
        if (IS(0, "tenant")) { if (!read_span(at, text, TAG, 1, 128, &e->tenant)) return 0; }
        else if (IS(1, "feature")) { if (!read_span(at, text, TAG, 1, 128, &e->feature)) return 0; }
        else if (IS(2, "model")) { if (!read_span(at, text, TAG, 1, 128, &e->model)) return 0; }
        else if (IS(3, "tokens")) { if (!read_tokens(at, e)) return 0; }
        else if (IS(4, "adapter")) { if (!read_optional(at, text, TAG, 128, &e->adapter, &e->has_adapter)) return 0; }
        else if (IS(5, "operation")) { if (!read_choice(at, OPERATIONS, &e->operation)) return 0; }
        else if (IS(6, "request_id")) { if (!read_optional(at, text, IDENTIFIER, 256, &e->request_id, &e->has_request)) return 0; }
        else if (IS(7, "root_request_id")) { if (!read_optional(at, text, IDENTIFIER, 256, &e->root_request_id, &e->has_root)) return 0; }
        else if (IS(8, "hop")) { if (!read_whole(at, 1000, &e->hop)) return 0; }
        else if (IS(9, "attempt")) { if (!read_whole(at, 1000, &e->attempt)) return 0; }
        else if (IS(10, "outcome")) { if (!read_choice(at, OUTCOMES, &e->outcome)) return 0; }
        else if (IS(11, "cache")) { if (!read_cache(at, text, blocks, e)) return 0; }
        else if (IS(12, "timing")) { if (!read_timing(at, e)) return 0; }
        else if (IS(13, "worker")) { if (!read_null(at) && !read_worker(at, text, e)) return 0; }
        else if (IS(14, "service_tier")) { if (!read_choice(at, TIERS, &e->tier)) return 0; }
        else if (IS(15, "lease_id")) { if (!read_optional(at, text, IDENTIFIER, 256, &e->lease_id, &e->has_lease)) return 0; }
        else if (IS(16, "attributes")) { if (!read_attributes(at, text, keys, values, e)) return 0; }
        else return 0;
    END_OBJECT(at)
    return (came & 15) == 15;
}

static int read_event(const char *text, const char *from, const char *end, span *blocks, span *keys, span *values, event *e) {
    const char *p = from, **at = &p;
    int twice = 0;
    span ignored;
    OBJECT(at)
        if (IS(0, "id")) { if (!read_span(at, text, IDENTIFIER, 1, 256, &e->id)) return 0; }
        else if (IS(1, "source")) { if (!read_span(at, text, IDENTIFIER, 1, 256, &e->source)) return 0; }
        else if (IS(2, "time")) { if (!read_time(at, &e->time_us)) return 0; }
        else if (IS(3, "data")) { if (!read_data(at, text, blocks, keys, values, e)) return 0; }
        else if (IS(4, "specversion")) { if (!read_constant(at, "1.0")) return 0; }
        else if (IS(5, "type")) { if (!read_constant(at, "taximeter.usage.v1")) return 0; }
        else if (IS(6, "subject")) { if (!read_optional(at, text, TAG, 128, &e->subject, &e->has_subject)) return 0; }
        else if (IS(7, "datacontenttype")) { if (!read_null(at) && !read_constant(at, "application/json")) return 0; }
        /* An extension of the envelope is tolerated; one that is not plain text is the reference's to skip. */
        else if (!read_span(at, text, TEXT, 0, UINT32_MAX, &ignored)) return 0;
    END_OBJECT(at)
    skip_space(at);
    return p == end && (came & 15) == 15;
}

static int consistent(const char *text, const event *e) {
    uint64_t input = e->uncached + e->gpu + e->cpu + e->disk + e->provider + e->five + e->hour;
    if (e->has_subject && (e->subject.length != e->tenant.length ||
                           memcmp(text + e->subject.start, text + e->tenant.start, e->tenant.length))) return 0;
    if (e->reasoning > e->output) return 0;
    if (e->has_total && e->total != input + e->output) return 0;
    return !e->blocks || e->hit_blocks <= e->blocks;
}

/* ---- the canonical body, byte for byte what the reference encoder writes ---- */

#define PUT(text) (memcpy(p, text, sizeof(text) - 1), p += sizeof(text) - 1)

static inline char *put(char *p, const char *from, uint32_t length) {
    memcpy(p, from, length);
    return p + length;
}

static inline char *put_whole(char *p, uint64_t value) {
    char digits[20];
    int count = 0;
    do digits[count++] = (char)('0' + value % 10); while (value /= 10);
    while (count) *p++ = digits[--count];
    return p;
}

static inline char *put_quoted(char *p, const char *text, span s) {
    *p++ = '"';
    p = put(p, text + s.start, s.length);
    *p++ = '"';
    return p;
}

static inline char *put_optional(char *p, const char *text, span s, int there) {
    return there ? put_quoted(p, text, s) : put(p, "null", 4);
}

static inline char *put_decimal(char *p, const decimal *d) {
    p = put(p, d->text, d->length);
    return d->whole ? put(p, ".0", 2) : p;
}

static inline char *put_optional_decimal(char *p, const decimal *d, int there) {
    return there ? put_decimal(p, d) : put(p, "null", 4);
}

static inline char *put_name(char *p, const char *name) {
    *p++ = '"';
    p = put(p, name, (uint32_t)strlen(name));
    *p++ = '"';
    return p;
}

static int before(const char *text, span a, span b) {
    int order = memcmp(text + a.start, text + b.start, a.length < b.length ? a.length : b.length);
    return order ? order < 0 : a.length < b.length;
}

static char *put_attributes(char *p, const char *text, const span *keys, const span *values, uint64_t count) {
    uint8_t order[ATTRIBUTES_MAX];
    for (uint64_t i = 0; i < count; i++) {
        uint64_t place = i;
        for (; place && before(text, keys[i], keys[order[place - 1]]); place--) order[place] = order[place - 1];
        order[place] = (uint8_t)i;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (i) *p++ = ',';
        p = put_quoted(p, text, keys[order[i]]);
        *p++ = ':';
        p = put_quoted(p, text, values[order[i]]);
    }
    return p;
}

static uint64_t write_body(char *into, const char *text, const event *e, const span *blocks, const span *keys, const span *values) {
    char *p = into;
    PUT("[{\"tenant\":"); p = put_quoted(p, text, e->tenant);
    PUT(",\"feature\":"); p = put_quoted(p, text, e->feature);
    PUT(",\"model\":"); p = put_quoted(p, text, e->model);
    PUT(",\"tokens\":{\"uncached_input\":"); p = put_whole(p, e->uncached);
    PUT(",\"cache_read\":{\"gpu\":"); p = put_whole(p, e->gpu);
    PUT(",\"cpu\":"); p = put_whole(p, e->cpu);
    PUT(",\"disk\":"); p = put_whole(p, e->disk);
    PUT(",\"provider\":"); p = put_whole(p, e->provider);
    PUT("},\"cache_write\":{\"5m\":"); p = put_whole(p, e->five);
    PUT(",\"1h\":"); p = put_whole(p, e->hour);
    PUT("},\"output\":"); p = put_whole(p, e->output);
    PUT(",\"reasoning\":"); p = put_whole(p, e->reasoning);
    PUT(",\"total\":"); p = e->has_total ? put_whole(p, e->total) : put(p, "null", 4);
    PUT("},\"adapter\":"); p = put_optional(p, text, e->adapter, e->has_adapter);
    PUT(",\"operation\":"); p = put_name(p, OPERATIONS[e->operation]);
    PUT(",\"request_id\":"); p = put_optional(p, text, e->request_id, e->has_request);
    PUT(",\"root_request_id\":"); p = put_optional(p, text, e->root_request_id, e->has_root);
    PUT(",\"hop\":"); p = put_whole(p, e->hop);
    PUT(",\"attempt\":"); p = put_whole(p, e->attempt);
    PUT(",\"outcome\":"); p = put_name(p, OUTCOMES[e->outcome]);
    PUT(",\"cache\":{\"pool\":"); p = put_optional(p, text, e->pool, e->has_pool);
    PUT(",\"block_size\":"); p = put_whole(p, e->block_size);
    PUT(",\"hit_blocks\":"); p = put_whole(p, e->hit_blocks);
    PUT(",\"blocks\":[");
    for (uint64_t i = 0; i < e->blocks; i++) {
        if (i) *p++ = ',';
        p = put_quoted(p, text, blocks[i]);
    }
    PUT("],\"attribution\":"); p = put_name(p, ATTRIBUTIONS[e->attribution]);
    PUT("},\"timing\":{\"queue_ms\":"); p = put_optional_decimal(p, &e->queue, e->has_queue);
    PUT(",\"ttft_ms\":"); p = put_optional_decimal(p, &e->ttft, e->has_ttft);
    PUT(",\"total_ms\":"); p = put_optional_decimal(p, &e->total_ms, e->has_total_ms);
    PUT("},\"worker\":null,\"service_tier\":"); p = put_name(p, TIERS[e->tier]);
    PUT(",\"lease_id\":"); p = put_optional(p, text, e->lease_id, e->has_lease);
    PUT(",\"attributes\":{"); p = put_attributes(p, text, keys, values, e->attributes);
    PUT("}},"); p = put_decimal(p, &e->gpu_seconds);
    *p++ = ']';
    return (uint64_t)(p - into);
}

static void hash_identity(const char *text, const event *e, uint8_t *digest) {
    char joined[128 + 256 + 256 + 2], *p = joined;
    p = put(p, text + e->tenant.start, e->tenant.length);
    *p++ = '\n';
    p = put(p, text + e->source.start, e->source.length);
    *p++ = '\n';
    p = put(p, text + e->id.start, e->id.length);
    blake2b_16(joined, (uint64_t)(p - joined), digest);
}

/* ---- what kernel.py calls ---- */

static void store(columns *c, int64_t i, const event *e) {
    c->time_us[i] = e->time_us;
    c->source[i] = e->source; c->event_id[i] = e->id; c->request_id[i] = e->request_id;
    c->root_request_id[i] = e->root_request_id; c->worker_id[i] = e->worker_id; c->lease_id[i] = e->lease_id;
    c->tenant[i] = e->tenant; c->feature[i] = e->feature; c->model[i] = e->model;
    c->adapter[i] = e->adapter; c->pool[i] = e->pool;
    c->operation[i] = (uint8_t)e->operation; c->outcome[i] = (uint8_t)e->outcome;
    c->service_tier[i] = (uint8_t)e->tier; c->attribution[i] = (uint8_t)e->attribution;
    c->hop[i] = (uint16_t)e->hop; c->attempt[i] = (uint16_t)e->attempt;
    c->uncached_input[i] = (uint32_t)e->uncached;
    c->cache_read_gpu[i] = (uint32_t)e->gpu; c->cache_read_cpu[i] = (uint32_t)e->cpu;
    c->cache_read_disk[i] = (uint32_t)e->disk; c->cache_read_provider[i] = (uint32_t)e->provider;
    c->cache_write_5m[i] = (uint32_t)e->five; c->cache_write_1h[i] = (uint32_t)e->hour;
    c->output[i] = (uint32_t)e->output; c->reasoning[i] = (uint32_t)e->reasoning;
    c->block_size[i] = (uint32_t)e->block_size; c->hit_blocks[i] = (uint32_t)e->hit_blocks;
    c->worker_sequence[i] = e->sequence; c->gpu_seconds[i] = e->gpu_seconds.value;
    c->queue_ms[i] = (float)e->queue.value; c->ttft_ms[i] = (float)e->ttft.value;
    c->total_ms[i] = (float)e->total_ms.value;
    c->queue_ms_null[i] = !e->has_queue; c->ttft_ms_null[i] = !e->has_ttft; c->total_ms_null[i] = !e->has_total_ms;
}

/* Read `count` payloads; payload i begins at text + starts[i] and is followed by a NUL byte at text + starts[i + 1] - 1. */
void scan(const char *text, const uint64_t *starts, int64_t count, columns *c) {
    static const decimal ZERO = {0, "0", 1, 1};
    fill_kinds();
    uint64_t blocks = 0, attributes = 0;
    for (int64_t i = 0; i < count; i++) {
        event e;
        memset(&e, 0, sizeof e);
        e.operation = 6;
        e.attribution = 2;
        e.gpu_seconds = e.queue = e.ttft = e.total_ms = ZERO;
        const char *from = text + starts[i], *end = text + starts[i + 1] - 1;
        span *b = c->blocks + blocks, *k = c->attribute_keys + attributes, *v = c->attribute_values + attributes;
        c->sure[i] = (uint8_t)(read_event(text, from, end, b, k, v, &e) && consistent(text, &e));
        if (c->sure[i]) {
            store(c, i, &e);
            hash_identity(text, &e, c->identity + 16 * i);
            blake2b_16(c->scratch, write_body(c->scratch, text, &e, b, k, v), c->body + 16 * i);
            blocks += e.blocks;
            attributes += e.attributes;
        }
        c->blocks_end[i] = blocks;
        c->attributes_end[i] = attributes;
    }
}

/* Number the different texts of a column in order of appearance. `table` has `mask` + 1 places, a power of two above `count`,
 * all UINT32_MAX. Returns how many there are; `firsts` says where each appeared first. */
int64_t number_texts(const char *text, const span *spans, int64_t count, uint32_t *table, uint64_t mask, uint32_t *codes, uint32_t *firsts) {
    uint32_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        const char *at = text + spans[i].start;
        uint32_t length = spans[i].length;
        uint64_t hash = 0x9e3779b97f4a7c15ULL ^ length, word;
        uint32_t done = 0;
        for (; done + 8 <= length; done += 8) {
            memcpy(&word, at + done, 8);
            hash = (hash ^ word) * 0xff51afd7ed558ccdULL;
            hash ^= hash >> 32;
        }
        word = 0;
        memcpy(&word, at + done, length - done);
        hash = (hash ^ word) * 0xff51afd7ed558ccdULL;
        hash ^= hash >> 29;
        for (uint64_t place = hash & mask;; place = (place + 1) & mask) {
            uint32_t code = table[place];
            if (code == UINT32_MAX) {
                table[place] = codes[i] = found;
                firsts[found++] = (uint32_t)i;
                break;
            }
            const span *other = &spans[firsts[code]];
            if (other->length == length && !memcmp(text + other->start, at, length)) {
                codes[i] = code;
                break;
            }
        }
    }
    return found;
}

/* Write texts as ClickHouse's Native format has them: length (LEB128), bytes. Returns the size; `into` must be large enough. */
int64_t pack_texts(const char *text, const span *spans, int64_t count, char *into) {
    char *p = into;
    for (int64_t i = 0; i < count; i++) {
        uint32_t length = spans[i].length;
        while (length >= 128) {
            *p++ = (char)(length | 128);
            length >>= 7;
        }
        *p++ = (char)length;
        p = put(p, text + spans[i].start, spans[i].length);
    }
    return p - into;
}

/* ---- a Bloom filter in blocks of one cache line: seven bits of 512, picked by the identity, which is a hash already ---- */

static inline uint64_t *block_of(uint64_t *filter, uint64_t mask, const uint8_t *identity, uint64_t *bits) {
    uint64_t word;
    memcpy(&word, identity, 8);
    memcpy(bits, identity + 8, 8);
    return filter + 8 * (word & mask);
}

/* `filter` has `mask` + 1 blocks, a power of two. */
void filter_add(uint64_t *filter, uint64_t mask, const uint8_t *identities, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits, *block = block_of(filter, mask, identities + 16 * i, &bits);
        for (int k = 0; k < 7; k++, bits >>= 9) block[(bits >> 6) & 7] |= 1ULL << (bits & 63);
    }
}

/* `maybe` becomes 1 where the identity may have been added, 0 where it surely was not. */
void filter_ask(uint64_t *filter, uint64_t mask, const uint8_t *identities, int64_t count, uint8_t *maybe) {
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits, *block = block_of(filter, mask, identities + 16 * i, &bits);
        if (i + 8 < count) {
            uint64_t ahead;
            memcpy(&ahead, identities + 16 * (i + 8), 8);
            __builtin_prefetch(filter + 8 * (ahead & mask));
        }
        int there = 1;
        for (int k = 0; k < 7; k++, bits >>= 9) there &= (int)(block[(bits >> 6) & 7] >> (bits & 63)) & 1;
        maybe[i] = (uint8_t)there;
    }
}
